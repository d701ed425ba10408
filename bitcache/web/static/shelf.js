// Parcels and offers: titles, and the links that this browser keeps. Everything else on the page are plain forms.

import { decode } from './base64url.js';
import { linkUrl } from './links.js';
import { keptLink, showNames } from './names.js';
import { say } from './words.js';

const shelf = document.getElementById('shelf');
const told = document.getElementById('told');

function copyButton(offer) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'copy';
  button.textContent = say('js_shelf_copy');
  button.addEventListener('click', () => copy(button, offer));
  return button;
}

async function copy(button, offer) {
  const kept = keptLink(offer.dataset.offer, offer.dataset.parcelId);
  if (!kept) return;
  const link = linkUrl(shelf.dataset.publicUrl, offer.dataset.offer, decode(kept.linkSecret));
  try {
    await navigator.clipboard.writeText(link);
    button.textContent = told.textContent = say('js_shelf_copied');
  } catch {
    showLink(button, link);
  }
}

// Where the browser forbids copying: to select by hand.
function showLink(button, link) {
  const line = document.createElement('p');
  line.className = 'line';
  line.tabIndex = 0;
  line.textContent = say('js_shelf_not_copied', { link });
  button.replaceWith(line);
  line.focus();
}

function noLink() {
  const line = document.createElement('span');
  line.className = 'muted small';
  line.textContent = say('js_shelf_no_link');
  return line;
}

showNames(document);
for (const offer of shelf.querySelectorAll('.offer')) {
  const kept = keptLink(offer.dataset.offer, offer.dataset.parcelId);
  const actions = offer.querySelector('.actions');
  actions?.prepend(kept ? copyButton(offer) : noLink());
}
