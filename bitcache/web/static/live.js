// The part of the page that shows how the payment stands. The server writes it, in every state and language; here it
// is fetched again and put in place, without moving what stays: one banner that screen readers follow, no jumps.

import { copy, element, show } from './page.js';
import { swapRefund } from './refund.js';
import { fetchDocument } from './trusted.js';

const HOLD_SHOWN_S = 300;

let fetching = null;
let again = false;
let clockAheadS = 0;

// Fetch the state and show it. Calls under way are joined: the last state wins.
export async function refresh() {
  again = true;
  fetching ??= (async () => {
    try {
      while (again) {
        again = false;
        const page = await fetchDocument(`${location.pathname}${location.search}`);
        swap(page);
      }
    } finally {
      fetching = null;
    }
  })();
  return fetching;
}

function swap(page) {
  const live = element('live');
  const next = page.getElementById('live');
  const stage = element('stage');
  const focused = live.contains(document.activeElement) ? document.activeElement.dataset.copy : undefined;
  // What gets shorter leaves its room empty: nothing below may jump while somebody reads or aims at it.
  stage.style.minHeight = `${stage.offsetHeight}px`;
  const banner = live.querySelector('.banner');
  const news = next.querySelector('.banner');
  if (banner.textContent !== news.textContent) banner.replaceChildren(...news.childNodes);
  banner.className = news.className;
  live.querySelector('.body').replaceWith(next.querySelector('.body'));
  Object.assign(live.dataset, next.dataset);
  swapRefund(page);
  element('transactions').replaceWith(page.getElementById('transactions'));
  dress();
  if (focused !== undefined) live.querySelector('[data-copy]')?.focus();
}

// What needs scripts: copy buttons, and the countdown of the price in its last minutes.
function dress() {
  const live = element('live');
  clockAheadS = Date.now() / 1000 - Number(live.dataset.now);
  for (const button of live.querySelectorAll('[data-copy]')) {
    show(button).onclick = () => copy(button.dataset.copy, button, button.dataset.copied);
  }
  tick();
}

function tick() {
  const live = element('live');
  const hold = element('hold');
  if (!hold) return;
  const leftS = Math.round(Number(live.dataset.until) + clockAheadS - Date.now() / 1000);
  show(hold, leftS <= HOLD_SHOWN_S);
  const left = `${Math.floor(Math.max(0, leftS) / 60)}:${String(Math.max(0, leftS) % 60).padStart(2, '0')}`;
  hold.textContent = hold.dataset.words.replace('{left}', left);
  // The server's word counts, and it moves the deadline by its own outages.
  if (leftS < 0 && leftS % 5 === 0) refresh().catch(() => {});
}

export function startClock() {
  dress();
  setInterval(tick, 1000);
}
