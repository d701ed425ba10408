// Titles and links of a seller's parcels, from what this browser keeps: the server has neither. A title is whatever
// its seller wrote: it is set as text, never as markup.

import { links } from './kept.js';

// The kept link of an offer; one of another offer of the same parcel serves as well, as the secret is the parcel's.
export function keptLink(offerId, parcelId) {
  const kept = links();
  return kept.find((link) => link.offerId === offerId) ?? kept.find((link) => link.parcelId === parcelId) ?? null;
}

// Put titles in the place of short ids below `root`.
export function showNames(root) {
  const titles = new Map();
  for (const link of links().reverse()) {
    if (link.title) titles.set(link.offerId, link.title).set(link.parcelId, link.title);
  }
  for (const place of root.querySelectorAll('[data-parcel]')) {
    const title = titles.get(place.dataset.offer) ?? titles.get(place.dataset.parcel);
    if (title) place.textContent = title;
  }
}
