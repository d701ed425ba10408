// Parcels and offers: titles, and the links that this browser keeps. Everything else on the page are plain forms.

import { decode } from './base64url.js';
import { linkUrl } from './links.js';
import { keptLink, showNames } from './names.js';
import { copy, element, make } from './page.js';
import { say } from './words.js';

const shelf = element('shelf');

function copyButton(offerId, kept) {
  const button = make('button', say('js_shelf_copy'), { type: 'button', className: 'tool' });
  button.addEventListener('click', async () => {
    const link = linkUrl(shelf.dataset.publicUrl, offerId, decode(kept.linkSecret));
    const copied = say('js_shelf_copied');
    if (await copy(link, button, copied)) element('told').textContent = copied;
    else showLink(button, link);
  });
  return button;
}

// Where the browser forbids copying: to select by hand.
function showLink(button, link) {
  const line = make('p', say('js_shelf_not_copied', { link }), { className: 'line', tabIndex: 0 });
  button.replaceWith(line);
  line.focus();
}

const noLink = () => make('span', say('js_shelf_no_link'), { className: 'muted small' });

showNames(document);
for (const offer of shelf.querySelectorAll('.offer')) {
  const kept = keptLink(offer.dataset.offer, offer.dataset.parcelId);
  const actions = offer.querySelector('.actions');
  actions?.prepend(kept ? copyButton(offer.dataset.offer, kept) : noLink());
}
