// The offer's page: opens the names with the link's secret, and asks for the invoice.
//
// Nothing can be paid before the link was seen to open what the server offers. The claim secret is made here and
// kept before the server hears of it, so a lost answer loses nothing: the same secret is the same invoice.

import { call, ApiProblem } from './api.js';
import { decode, encode } from './base64url.js';
import { askEarning } from './earn.js';
import { FormatError } from './errors.js';
import { showGoods, titleOf } from './goods.js';
import { keepPurchase, purchaseOf } from './kept.js';
import { claimHash, newSecret } from './keys.js';
import { parseLink, receiptUrl } from './links.js';
import { copy, element, hasCryptography, keepFragment, show, trouble } from './page.js';
import { openParcel } from './parcel.js';
import { language, say } from './words.js';

const offerId = location.pathname.split('/').at(-1);
const paying = element('pay');

async function start() {
  // A link pasted over this one changes the fragment alone: start over with it.
  addEventListener('hashchange', () => location.reload());
  keepFragment();
  if (!hasCryptography()) return refuse('js_offer_insecure');
  let link;
  try {
    link = parseLink(location.href);
  } catch {
    return refuse('js_offer_cut');
  }
  let parcel;
  try {
    parcel = await openParcel(await call('GET', `/offers/${offerId}`), link.linkSecret);
  } catch (error) {
    if (error instanceof FormatError) {
      return refuse(error.kind === 'metadata-authentication-failed' ? 'js_offer_wrong' : 'js_offer_lies');
    }
    return warn(error);
  }
  showGoods(parcel);
  offerWhatWasBought(link);
  showCommands();
  if (paying) show(paying).querySelector('button').onclick = () => pay(link, parcel);
  document.body.dataset.ready = 'true';
  return undefined;
}

// Without the right link the money would buy nothing.
function refuse(key) {
  trouble(key);
  for (const id of ['next', 'metered']) if (element(id)) show(element(id), false);
  document.body.dataset.ready = 'true';
}

function offerWhatWasBought(link) {
  const purchase = purchaseOf(offerId);
  if (!purchase?.invoiceId) return;
  const line = show(element('bought'));
  line.querySelector('.go').href = placeOf(purchase.invoiceId, decode(purchase.claimSecret), link.linkSecret);
}

// What is sold per chunk is bought with the command line: the commands, with the link's secret, to be copied.
function showCommands() {
  const secret = element('get-command')?.lastChild;
  if (secret) secret.textContent = secret.textContent.replace('#…', location.hash);
  for (const button of document.querySelectorAll('[data-copies]')) {
    const source = element(button.dataset.copies);
    show(button).onclick = () => copy(source.textContent, button, button.dataset.copied, source);
  }
}

async function pay(link, parcel) {
  const button = paying.querySelector('button');
  const said = button.textContent;
  button.disabled = true;
  button.textContent = say('js_offer_paying');
  try {
    location.assign(await ordered(link, parcel));
  } catch (error) {
    warn(error);
    button.disabled = false;
    button.textContent = said;
  }
}

// The receipt's address, once the server has an invoice for it.
async function ordered(link, parcel) {
  const unanswered = purchaseOf(offerId);
  const claimSecret = unanswered && !unanswered.invoiceId ? decode(unanswered.claimSecret) : newSecret();
  const purchase = {
    ordered: true,
    invoiceId: '',
    offerId,
    title: titleOf(parcel),
    claimSecret: encode(claimSecret),
    linkSecret: encode(link.linkSecret),
  };
  keep(purchase);
  const body = { claim_hash: encode(await claimHash(claimSecret)) };
  const ask = (work) => call('POST', `/offers/${offerId}/invoices`, { body: work ? { ...body, work } : body });
  const invoice = await askEarning(ask, showWork);
  keep({ ...purchase, invoiceId: invoice.invoice_id });
  return placeOf(invoice.invoice_id, claimSecret, link.linkSecret);
}

// An address must be earned: how long that still takes is luck, so only what is done is told.
function showWork(share) {
  const key = share < 1 ? 'js_offer_earning' : 'js_offer_earning_on';
  paying.querySelector('button').textContent = say(key, { percent: Math.floor(share * 100) });
}

function keep(purchase) {
  try {
    keepPurchase(purchase);
  } catch {
    // This browser keeps nothing: the receipt stands in its address line, and the page says to keep it.
  }
}

function placeOf(invoiceId, claimSecret, linkSecret) {
  const place = new URL(receiptUrl(location.origin, invoiceId, claimSecret, linkSecret));
  place.search = `?lang=${language}`;
  return place.href;
}

function warn(error) {
  const banner = show(element('trouble'));
  const known = error instanceof ApiProblem ? `e_${error.name}` : 'js_offer_offline';
  banner.querySelector('p').textContent = '';
  try {
    banner.querySelector('strong').textContent = say(known);
  } catch {
    banner.querySelector('strong').textContent = say('e_other');
  }
}

start();
