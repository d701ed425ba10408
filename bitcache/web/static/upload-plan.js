// From what a seller chose to what is uploaded: paths checked, keys made. Decides only; keeps and sends nothing.

import { encode } from './base64url.js';
import { ciphertextSize, newHeader } from './content.js';
import { FormatError } from './errors.js';
import { newSecret, parcelKey, wrapFileKey } from './keys.js';
import { MEDIA_TYPE } from './metadata.js';
import { checkPaths } from './paths.js';

const UNKNOWN_TYPE = 'application/octet-stream';
const SEALING_BYTES = 16;

// What is wrong with the paths of a parcel: null, or {reason: 'path' | 'path-twice', path} with one to rename.
export function pathTrouble(paths) {
  if (!refused(paths)) return null;
  const bad = paths.find((path) => refused([path]));
  if (bad !== undefined) return { reason: 'path', path: bad };
  // Each is right in itself: find the first that is in the way of one before it.
  let [right, wrong] = [0, paths.length];
  while (wrong - right > 1) {
    const middle = Math.floor((right + wrong) / 2);
    if (refused(paths.slice(0, middle))) wrong = middle;
    else right = middle;
  }
  return { reason: 'path-twice', path: paths[wrong - 1] };
}

function refused(paths) {
  try {
    checkPaths(paths);
    return false;
  } catch (failure) {
    if (failure instanceof FormatError) return true;
    throw failure;
  }
}

// Bytes the account needs for files of these sizes.
export const storedBytes = (sizes) => sizes.reduce((sum, sizeBytes) => sum + ciphertextSize(sizeBytes), 0);

// A new parcel as upload-store keeps it. `chosen` maps paths to Files.
export async function plannedParcel({ accountId, chosen, description, terms }) {
  const parcel = {
    id: encode(crypto.getRandomValues(new Uint8Array(SEALING_BYTES))),
    accountId,
    at: Date.now(),
    linkSecret: newSecret(),
    releaseSecret: newSecret(),
    description,
    terms,
    parcelId: null,
    offerId: null,
  };
  const paths = [...chosen.keys()];
  const normal = checkPaths(paths);
  const sorted = paths.map((path, place) => ({ path: normal[place], source: chosen.get(path) }));
  sorted.sort((one, other) => (one.path < other.path ? -1 : 1));
  const key = await parcelKey(parcel.linkSecret, parcel.releaseSecret);
  const files = await Promise.all(
    sorted.map(({ path, source }, place) => sealing(key, { parcel: parcel.id, place, path }, source)),
  );
  return { parcel, files };
}

// The same place of the parcel with a fresh key and header, for what `source` holds now.
export async function sealedAnew(parcel, file, source) {
  const key = await parcelKey(parcel.linkSecret, parcel.releaseSecret);
  return sealing(key, { parcel: file.parcel, place: file.place, path: file.path }, source);
}

async function sealing(parcelKeyBytes, place, source) {
  const [fileKey, header] = [newSecret(), newHeader()];
  return {
    ...place,
    mediaType: MEDIA_TYPE.test(source.type) ? source.type : UNKNOWN_TYPE,
    sizeBytes: source.size,
    modifiedMs: source.lastModified,
    sealing: encode(crypto.getRandomValues(new Uint8Array(SEALING_BYTES))),
    fileKey,
    header,
    wrappedKey: await wrapFileKey(parcelKeyBytes, fileKey, header),
    fileId: null,
  };
}
