// Small things every page script needs: elements by id, banners of trouble, copying, secure context.

import { say } from './words.js';

export const element = (id) => document.getElementById(id);

// An element with text, never markup: what a seller wrote stays words.
export function make(tag, text = '', properties = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  return Object.assign(made, properties);
}

export function show(node, shown = true) {
  node.hidden = !shown;
  return node;
}

// The page's banner of trouble; `key` has a `key_hint` beside it.
export function trouble(key) {
  const banner = show(element('trouble'));
  banner.querySelector('strong').textContent = say(key);
  banner.querySelector('p').textContent = say(`${key}_hint`);
}

// The links to other languages keep the secrets in the address: without them the page could open nothing.
export function keepFragment() {
  for (const link of document.querySelectorAll('footer nav a')) link.hash = location.hash;
}

// Browsers give cryptography to https and localhost alone.
export const hasCryptography = () => globalThis.isSecureContext && Boolean(globalThis.crypto?.subtle);

// Puts `text` on the clipboard and says so on the button for a moment; true if that worked. Where the browser forbids
// it, `source` is selected, to be copied by hand.
export async function copy(text, button, copied, source = null) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (source) getSelection().selectAllChildren(source);
    return false;
  }
  button.textContent = copied;
  setTimeout(() => {
    button.textContent = said;
  }, 1500);
  return true;
}
