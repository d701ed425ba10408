// What the seller gets: the link, its QR code, a button for other sites; and how to take the files back.

import { call } from './api.js';
import { encode } from './base64url.js';
import { forgetLink, keepLink } from './kept.js';
import { linkUrl } from './links.js';
import { copy, element, show } from './page.js';
import { qrCode } from './qr.js';
import { sellerToken } from './seller-token.js';
import { sat, say } from './words.js';

// The colours are ours; the page it ends up on has no style sheet of ours.
const BUTTON_STYLE =
  'display:inline-block;padding:.7em 1.3em;border-radius:.6em;background:#9c4a00;color:#fff;' +
  'font:600 1em/1.2 system-ui,sans-serif;text-decoration:none';

// `parcel` as upload-store has it, sealed and on offer. Returns whether this browser could keep the link.
export function showResult(parcel, publicUrl) {
  const { description, terms, parcelId, offerId, linkSecret } = parcel;
  const link = linkUrl(publicUrl, offerId, linkSecret);
  const free = terms.priceSat === 0;
  show(element('result-sale'), !free);
  show(element('result-free'), free);
  element('result-name').textContent = description.title;
  element('link').textContent = link;
  element('view').href = link;
  element('qr').replaceChildren(qrCode(link));
  element('snippet').textContent = snippetOf(link, description.title, terms.priceSat);
  copiedBy('copy-link', element('link'));
  copiedBy('copy-snippet', element('snippet'));
  offerDeletion(parcelId, offerId);
  show(element('result'));
  element('result-title').focus();
  try {
    keepLink({ offerId, parcelId, title: description.title, linkSecret: encode(linkSecret) });
    return true;
  } catch {
    show(element('not-kept')).textContent = say('js_upload_not_kept');
    return false;
  }
}

function copiedBy(id, source) {
  element(id).addEventListener('click', ({ target }) => {
    copy(source.textContent, target, say('js_upload_copied'), source);
  });
}

// A plain link that looks like a button: no script, nothing that is fetched from anywhere.
function snippetOf(link, title, priceSat) {
  const words = { title: title || say('js_upload_snippet_untitled'), sat: sat(priceSat) };
  const text = say(priceSat === 0 ? 'js_upload_snippet_free' : 'js_upload_snippet_price', words);
  return `<a href="${escaped(link)}" rel="noopener" style="${BUTTON_STYLE}">${escaped(text)}</a>`;
}

const ESCAPES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };

const escaped = (text) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

function offerDeletion(parcelId, offerId) {
  const asks = (shown) => {
    show(element('delete-ask'), shown);
    show(element('delete'), !shown);
    element(shown ? 'delete-no' : 'delete').focus();
  };
  element('delete').addEventListener('click', () => asks(true));
  element('delete-no').addEventListener('click', () => asks(false));
  element('delete-yes').addEventListener('click', async () => {
    show(element('delete-failed'), false);
    try {
      await deleteParcel(parcelId);
    } catch (problem) {
      const detail = problem.detail ?? problem.message;
      show(element('delete-failed')).textContent = say('js_upload_e_other', { detail });
      return;
    }
    forgetLink(offerId);
    show(element('result'), false);
    show(element('deleted'));
    element('deleted-title').focus();
  });
}

// What is gone already is no trouble. Throws ApiProblem.
async function deleteParcel(parcelId) {
  try {
    await call('DELETE', `/parcels/${parcelId}`, { token: await sellerToken() });
  } catch (problem) {
    if (problem.status !== 404) throw problem;
  }
}
