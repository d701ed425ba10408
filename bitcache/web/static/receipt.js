// The page of a payment, which becomes a receipt: its address in the browser is all a buyer has to keep.

import { decode, encode } from './base64url.js';
import { follow } from './follow.js';
import { Getting } from './getting.js';
import { keepPurchase, purchases } from './kept.js';
import { parseReceipt, receiptUrl } from './links.js';
import { refresh, startClock } from './live.js';
import { copy, element, hasCryptography, keepFragment, show, trouble } from './page.js';
import { qrCode } from './qr.js';
import { offerRefund } from './refund.js';
import { say } from './words.js';

const RETRY_MS = 5_000;
const invoiceId = location.pathname.split('/').at(-1);

async function start() {
  addEventListener('hashchange', () => location.reload());
  startClock();
  const receipt = receiptOfPage();
  keepFragment();
  let getting = null;
  if (receipt) {
    showReceipt(receipt);
    offerRefund(receipt, refresh);
    if (hasCryptography()) getting = new Getting(receipt);
    else trouble('js_offer_insecure');
  } else trouble('js_receipt_no_secret');
  let opened = false;
  let shown = null;
  const open = async () => {
    opened ||= await attempted(() => getting.open());
  };
  let work = getting ? open() : Promise.resolve();
  let latest = 0;
  // One after the other: a claim under way must not be asked for again. What failed is tried again, until there is news.
  const act = (view) => {
    latest += 1;
    const turn = latest;
    work = work.then(async () => {
      await open();
      const done = opened && (await attempted(() => getting.update(view).then(() => true)));
      if (!done && !getting.refused) setTimeout(() => turn === latest && act(view), RETRY_MS);
    });
  };
  follow(invoiceId, {
    onLine: (there) => {
      element('connection').textContent = there ? '' : say('js_receipt_lost');
    },
    onInvoice: (view) => {
      const { now, ...state } = view;
      const told = JSON.stringify(state);
      if (told !== shown) {
        shown = told;
        // The page came with a state; asked again it costs little, and is surely the newest.
        refresh().catch(() => {
          shown = null;
        });
      }
      if (getting) act(view);
    },
  });
  await work;
  document.body.dataset.ready = 'true';
}

// A server that is away for a moment is no reason to give up.
async function attempted(action) {
  try {
    return await action();
  } catch {
    return false;
  }
}

// From the address, else from what this browser has kept: then it is put into the address again.
function receiptOfPage() {
  try {
    const receipt = parseReceipt(location.href);
    remember(receipt);
    return receipt;
  } catch {
    const kept = location.hash ? null : purchases().find((purchase) => purchase.invoiceId === invoiceId);
    if (!kept) return null;
    const receipt = { invoiceId, claimSecret: decode(kept.claimSecret), linkSecret: decode(kept.linkSecret) };
    history.replaceState(null, '', `${location.pathname}${location.search}${new URL(linkOf(receipt)).hash}`);
    return receipt;
  }
}

function remember(receipt) {
  const claimSecret = encode(receipt.claimSecret);
  const known = purchases().find((purchase) => purchase.claimSecret === claimSecret);
  try {
    keepPurchase({
      title: '',
      ...known,
      invoiceId,
      offerId: element('live').dataset.offer,
      claimSecret,
      linkSecret: encode(receipt.linkSecret),
    });
  } catch {
    // It stands in the address line all the same.
  }
}

const linkOf = (receipt) => receiptUrl(location.origin, invoiceId, receipt.claimSecret, receipt.linkSecret);

function showReceipt(receipt) {
  const link = linkOf(receipt);
  const line = element('receipt-link');
  line.textContent = link;
  element('copy-receipt').onclick = (event) => copy(link, event.currentTarget, say('js_receipt_copied'), line);
  element('print-receipt').onclick = () => print();
  element('receipt-code').replaceChildren(qrCode(link));
  show(element('keep'));
}

start();
