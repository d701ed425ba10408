// The front page: purchases that this browser keeps, each a link to its receipt. Nothing of them is sent: the secrets
// are after the `#`, and titles are the seller's words, shown as text alone.

import { forgetPurchases, purchases } from './kept.js';
import { language, say } from './words.js';

const ID = /^[a-z2-7]{26}$/;
const SECRET = /^[A-Za-z0-9_-]{43}$/;
const SHOWN_MAX = 50;

const section = document.getElementById('purchases');

function entry({ invoiceId, claimSecret, linkSecret, title, at }) {
  const link = document.createElement('a');
  link.href = `/r/${invoiceId}?lang=${language}#1.${claimSecret}.${linkSecret}`;
  link.textContent = title || say('js_front_untitled');
  const when = document.createElement('span');
  when.className = 'muted small';
  when.textContent = new Date(at).toLocaleString(language);
  const item = document.createElement('li');
  item.append(link, when);
  return item;
}

// What was never answered has no receipt yet; what is damaged leads nowhere.
const whole = ({ invoiceId, claimSecret, linkSecret }) =>
  ID.test(invoiceId) && SECRET.test(claimSecret) && SECRET.test(linkSecret);

const kept = purchases().filter(whole).slice(0, SHOWN_MAX);
section.querySelector('ul').append(...kept.map(entry));
section.hidden = kept.length === 0;
document.getElementById('forget').onclick = () => {
  forgetPurchases();
  section.hidden = true;
};
