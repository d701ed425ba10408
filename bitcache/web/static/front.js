// The front page: purchases that this browser keeps, each a link to its receipt. Nothing of them is sent: the secrets
// are after the `#`, and titles are the seller's words, shown as text alone.

import { forgetKept } from './kept-ciphertext.js';
import { forgetPurchases, purchases } from './kept.js';
import { element, make, show } from './page.js';
import { language, say } from './words.js';

const ID = /^[a-z2-7]{26}$/;
const SECRET = /^[A-Za-z0-9_-]{43}$/;
const SHOWN_MAX = 50;

function entry({ invoiceId, claimSecret, linkSecret, title, at }) {
  const href = `/r/${invoiceId}?lang=${language}#1.${claimSecret}.${linkSecret}`;
  const item = make('li');
  item.append(
    make('a', title || say('js_front_untitled'), { href }),
    make('span', new Date(at).toLocaleString(language), { className: 'muted small' }),
  );
  return item;
}

// What was never answered has no receipt yet; what is damaged leads nowhere.
const whole = ({ invoiceId, claimSecret, linkSecret }) =>
  ID.test(invoiceId) && SECRET.test(claimSecret) && SECRET.test(linkSecret);

const kept = purchases().filter(whole).slice(0, SHOWN_MAX);
const section = show(element('purchases'), kept.length > 0);
section.querySelector('ul').append(...kept.map(entry));
element('forget').onclick = async () => {
  const bought = purchases();
  forgetPurchases();
  show(section, false);
  // What was fetched ahead of its key is of no use without the receipt.
  for (const { invoiceId } of bought) if (ID.test(invoiceId)) await forgetKept(invoiceId);
};
