// What an upload must not forget when the page goes away (docs/FORMAT.md, section 12), in IndexedDB.
//
// The rule it keeps: keys, headers, file ids, and the digests of every chunk are on disk before the chunk is first
// sent, and once there the digests never change. Whoever seals a part asks `recordDigests`, which compares or adds in
// one transaction: not even two tabs can send different chunks under one key.
//
//   parcels  by id:                 {id, accountId, at, linkSecret, releaseSecret, description, terms, parcelId,
//                                    offerId}
//   files    by parcel and place:   {parcel, place, path, mediaType, sizeBytes, modifiedMs, sealing, fileKey, header,
//                                    wrappedKey, fileId}
//   parts    by sealing and number: digests
//
// A sealing is one encryption of one file: a key and a header of its own, and an id that never comes back.

import { sameBytes } from './bytes.js';

const NAME = 'bitcache-upload';
const VERSION = 1;

// The file encrypts to other bytes than those that may have been sent: it needs a fresh key.
export class SourceDiffers extends Error {}

export async function openStore() {
  const opening = indexedDB.open(NAME, VERSION);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore('parcels', { keyPath: 'id' });
    opening.result.createObjectStore('files', { keyPath: ['parcel', 'place'] });
    opening.result.createObjectStore('parts');
  };
  return new UploadStore(await settled(opening));
}

class UploadStore {
  #database;

  constructor(database) {
    this.#database = database;
    // Another tab with a newer page wants to change the tables.
    database.onversionchange = () => database.close();
  }

  // Unfinished parcels of an account, newest first.
  async parcels(accountId) {
    const all = await this.#read('parcels', ({ parcels }) => settled(parcels.getAll()));
    return all.filter((parcel) => parcel.accountId === accountId).sort((one, other) => other.at - one.at);
  }

  parcel(id) {
    return this.#read('parcels', ({ parcels }) => settled(parcels.get(id)));
  }

  // In the order in which buyers see them.
  files(id) {
    return this.#read('files', ({ files }) => settled(files.getAll(below(id))));
  }

  add(parcel, listed) {
    return this.#write(['parcels', 'files'], ({ parcels, files }) => {
      parcels.add(parcel);
      for (const file of listed) files.add(file);
    });
  }

  changeParcel(id, changes) {
    return this.#write(['parcels'], async ({ parcels }) => {
      parcels.put({ ...(await settled(parcels.get(id))), ...changes });
    });
  }

  // Of this sealing: if another tab has started the file anew meanwhile, nothing is changed.
  changeFile(file, changes) {
    return this.#write(['files'], async ({ files }) => {
      const known = await settled(files.get([file.parcel, file.place]));
      if (known?.sealing !== file.sealing) throw new SourceDiffers('the file was started anew');
      files.put({ ...known, ...changes });
    });
  }

  // In place of the sealing `before`, whose digests count no more.
  replaceFile(before, file) {
    return this.#write(['files', 'parts'], ({ files, parts }) => {
      parts.delete(below(before.sealing));
      files.put(file);
    });
  }

  // The numbers of the parts whose digests are on record.
  async recordedParts(file) {
    const keys = await this.#read('parts', ({ parts }) => settled(parts.getAllKeys(below(file.sealing))));
    return new Set(keys.map(([, partNo]) => partNo));
  }

  // To be awaited before the first byte of the part is sent. Throws SourceDiffers: it must not be sent.
  recordDigests(file, partNo, digests) {
    return this.#write(['parts'], async ({ parts }) => {
      const known = await settled(parts.get([file.sealing, partNo]));
      if (known && !sameBytes(known, digests)) throw new SourceDiffers('the chunks have other digests now');
      if (!known) parts.add(digests, [file.sealing, partNo]);
    });
  }

  // Of all parts on record, in order, as one list.
  async allDigests(file) {
    const lists = await this.#read('parts', ({ parts }) => settled(parts.getAll(below(file.sealing))));
    return new Uint8Array(await new Blob(lists).arrayBuffer());
  }

  async remove(id) {
    const sealings = (await this.files(id)).map((file) => file.sealing);
    await this.#write(['parcels', 'files', 'parts'], ({ parcels, files, parts }) => {
      parcels.delete(id);
      files.delete(below(id));
      for (const sealing of sealings) parts.delete(below(sealing));
    });
  }

  #read(name, work) {
    return work({ [name]: this.#database.transaction(name).objectStore(name) });
  }

  // Resolves once it is on the disk, not only handed to the system.
  async #write(names, work) {
    const transaction = this.#database.transaction(names, 'readwrite', { durability: 'strict' });
    const done = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error ?? new DOMException('aborted', 'AbortError'));
    });
    try {
      await work(Object.fromEntries(names.map((name) => [name, transaction.objectStore(name)])));
    } catch (error) {
      done.catch(() => {});
      abort(transaction);
      throw error;
    }
    await done;
  }
}

// Every key that begins with `first`.
const below = (first) => IDBKeyRange.bound([first], [first, []]);

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function abort(transaction) {
  try {
    transaction.abort();
  } catch {
    // It has ended by itself.
  }
}
