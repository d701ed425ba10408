// What this browser keeps, and no server: a seller's links, a buyer's purchases. Secrets are base64url.
//
//   link      by offer:         {offerId, parcelId, title, linkSecret, at}
//   purchase  by claim secret:  {invoiceId, offerId, title, claimSecret, linkSecret, at, ordered}
//
// A purchase is kept before its invoice is asked for, with '' for its id: whatever breaks then, the claim secret is not
// lost. `ordered`: it was asked for in this browser, not only opened as a receipt of somebody's.

const LINK = 'bitcache.link.';
const PURCHASE = 'bitcache.purchase.';

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // not ours, or storage is forbidden here
  }
}

function all(prefix) {
  const found = [];
  try {
    for (let place = 0; place < localStorage.length; place += 1) {
      const key = localStorage.key(place);
      const value = key.startsWith(prefix) ? read(key) : null;
      if (value) found.push(value);
    }
  } catch {
    return [];
  }
  return found.sort((one, other) => other.at - one.at);
}

// Throws where the browser keeps nothing (full, or forbidden): whoever holds a secret must say so.
export function keepLink(link) {
  localStorage.setItem(LINK + link.offerId, JSON.stringify({ at: Date.now(), ...link }));
}
export const links = () => all(LINK);
export const forgetLink = (offerId) => localStorage.removeItem(LINK + offerId);

export function keepPurchase(purchase) {
  localStorage.setItem(PURCHASE + purchase.claimSecret, JSON.stringify({ at: Date.now(), ...purchase }));
}
// The newest that was ordered of an offer, or null.
export const purchaseOf = (offerId) =>
  all(PURCHASE).find((one) => one.offerId === offerId && one.ordered) ?? null;
export const purchases = () => all(PURCHASE);
export function forgetPurchases() {
  const keys = Array.from({ length: localStorage.length }, (_, place) => localStorage.key(place));
  for (const key of keys) if (key.startsWith(PURCHASE)) localStorage.removeItem(key);
}
