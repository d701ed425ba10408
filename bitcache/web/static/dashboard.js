// The earnings keep themselves up to date: when the server says that something changed, the page is read again and
// those of its parts that differ take the place of the old ones. Where the eye, the keyboard and the finger are, stays.

import { showNames } from './names.js';
import { copy, element, make } from './page.js';
import { fetchDocument } from './trusted.js';
import { language, say } from './words.js';

const EVENTS = '/dashboard/events';
const INTERVAL_MS = 1_000; // at most one reading in this time,
const SHARE = 4; // nor more often than it takes to answer: a seller of very much is no burden
const SLOW_MS = 60_000; // views are added each minute, without an event
const RETRY_MS = 10_000;

const state = element('live-state');
let stream = null;
let timer = 0;
let readAt = 0;
let tookMs = 0;
let reading = false;

// A live region: said again only when it changes.
function tell(words) {
  if (state.textContent !== words) state.textContent = words;
}

// Titles and buttons, before a part is compared and shown: nothing changes once it is there.
function dress(root) {
  showNames(root);
  for (const code of root.querySelectorAll('[data-copy]')) {
    const id = `copy-${code.dataset.copy}`;
    const button = make('button', say('js_dash_copy'), { type: 'button', className: 'tool', id });
    button.setAttribute('aria-label', `${say('js_dash_copy')} ${code.textContent}`);
    code.after(' ', button);
  }
}

function replacePart(old, fresh) {
  for (const open of old.querySelectorAll('details[id]')) {
    const twin = fresh.querySelector(`#${CSS.escape(open.id)}`);
    if (twin) twin.open = open.open;
  }
  if (old.isEqualNode(fresh)) return;
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  if (focused?.matches('input, select')) return; // somebody is writing there: with the next reading
  const scrolled = [...old.querySelectorAll('.scroll[id]')].map((box) => [box.id, box.scrollLeft, box.scrollTop]);
  old.replaceWith(fresh);
  for (const [id, left, top] of scrolled) element(id)?.scrollTo(left, top);
  if (focused?.id) element(focused.id)?.focus({ preventScroll: true });
}

async function read() {
  reading = true;
  readAt = Date.now();
  try {
    const page = await fetchDocument(location.pathname + location.search);
    if (!page.getElementById('part-figures')) {
      location.reload(); // signed out: the sign-in page
      return;
    }
    tookMs = Date.now() - readAt;
    for (const old of document.querySelectorAll('[data-live]')) {
      const fresh = document.adoptNode(page.getElementById(old.id));
      dress(fresh);
      replacePart(old, fresh);
    }
    if (stream) tell(say('js_dash_live'));
  } catch {
    tell(say('js_dash_lost'));
    later(RETRY_MS);
  } finally {
    reading = false;
  }
}

// Read the page soon; several wishes within the interval are one.
function later(delayMs = 0) {
  if (timer) return;
  const waitMs = Math.max(delayMs, readAt + Math.max(INTERVAL_MS, SHARE * tookMs) - Date.now());
  timer = setTimeout(() => {
    timer = 0;
    if (document.visibilityState === 'hidden') return;
    if (reading) later();
    else read();
  }, waitMs);
}

function listen() {
  if (stream) return;
  stream = new EventSource(EVENTS);
  stream.addEventListener('open', () => {
    tell(say('js_dash_live'));
    later(); // what happened before the line was open
  });
  stream.addEventListener('changed', () => later());
  stream.addEventListener('error', () => {
    tell(say('js_dash_lost'));
    if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    hush();
    later(RETRY_MS);
    setTimeout(wake, RETRY_MS);
  });
}

function hush() {
  stream?.close();
  stream = null;
}

// A page that nobody sees holds no line: browsers open only a few to one server.
function wake() {
  if (document.visibilityState === 'hidden') {
    hush();
  } else {
    listen();
  }
}

// Without a zone in the address, the browser's own is meant.
function takeZone() {
  const address = new URL(location.href);
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (address.searchParams.has('zone') || !zone) return;
  address.searchParams.set('zone', zone);
  if (!address.searchParams.has('lang')) address.searchParams.set('lang', language);
  history.replaceState(null, '', address);
  if (element('part-span').dataset.zone !== zone) later();
}

function offerZones() {
  const list = element('zones');
  if (list.childElementCount) return;
  for (const zone of Intl.supportedValuesOf?.('timeZone') ?? []) {
    list.append(make('option', '', { value: zone }));
  }
}

dress(document);
takeZone();
wake();
document.addEventListener('visibilitychange', wake);
document.addEventListener('focusin', (event) => {
  if (event.target.id === 'span-zone') offerZones();
});
document.addEventListener('click', (event) => {
  const button = event.target.closest('button[id^="copy-"]');
  if (button) copy(button.id.slice('copy-'.length), button, say('js_dash_copied'));
});
setInterval(() => later(), SLOW_MS);
