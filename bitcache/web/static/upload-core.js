// A parcel's way to the server: every file announced, sent in parts and completed; the parcel sealed; an offer made.
//
// May end at any moment and be run again: everything before a point is on record in upload-store. The rule it keeps:
// a part whose digests are not those on record is never sent (docs/FORMAT.md, section 12); its file starts anew.

import { encode } from './base64url.js';
import { ApiProblem } from './api.js';
import { ContentCipher, ciphertextSize } from './content.js';
import { rootOf } from './digests.js';
import { keyCheck, metadataKey, parcelKey, releaseCommitment } from './keys.js';
import { MODIFIED_AT_MAX, sealMetadata } from './metadata.js';
import { inLanes } from './upload-lanes.js';
import { partCount, partSize, sealPart } from './upload-part.js';
import { sealedAnew } from './upload-plan.js';
import { SourceDiffers } from './upload-store.js';

const LANES = 3;
const ANNOUNCING_LANES = 6;
const FRESH_STARTS_MAX = 3;
const MSAT_PER_SAT = 1000;

// The file changes faster than it can be sent.
export class SourceChanging extends Error {
  constructor(path) {
    super('the file keeps changing');
    this.path = path;
  }
}

class MustStartAnew extends Error {
  constructor(file) {
    super('other bytes may have left under this key');
    this.file = file;
  }
}

export class Upload {
  #store;
  #api;
  #tell;
  #parcel;
  #sources;
  #files = [];
  #ciphers = new Map(); // by sealing
  #onTheWay = new Map(); // bytes of parts that are being sent, by job
  #storedBytes = 0;
  #totalBytes = 0;
  #freshStarts = new Map(); // how many, by place

  // `sources` maps paths to Files; none are needed once the parcel is made. `api` is of upload-api.js. `tell(news)`
  // hears {kind: 'phase', phase}, {kind: 'prepared', done, count} (files), {kind: 'progress', sentBytes,
  // storedBytes, totalBytes} (sent is more: it is on the way) and {kind: 'anew', path}.
  constructor({ store, api, parcel, sources, tell }) {
    this.#store = store;
    this.#api = api;
    this.#parcel = parcel;
    this.#sources = sources;
    this.#tell = tell;
  }

  // {parcelId, offerId}. Throws ApiProblem, FormatError (the description), SourceUnreadable, SourceChanging.
  async run() {
    this.#files = await this.#store.files(this.#parcel.id);
    if (!this.#parcel.parcelId) {
      // A description that cannot be sealed is refused before hours of uploading, not after.
      await this.#sealed(this.#files.map(() => new Uint8Array(32)));
      await this.#sendFilesInTheEnd();
      await this.#change({ parcelId: await this.#makeParcel() });
    }
    this.#tell({ kind: 'phase', phase: 'finishing' });
    await this.#seal();
    if (!this.#parcel.offerId) await this.#change({ offerId: await this.#makeOffer() });
    return { parcelId: this.#parcel.parcelId, offerId: this.#parcel.offerId };
  }

  // Files

  async #sendFilesInTheEnd() {
    for (;;) {
      try {
        await this.#sendFiles();
        return;
      } catch (change) {
        if (!(change instanceof MustStartAnew)) throw change;
        await this.#startedAnew(change.file);
      }
    }
  }

  async #sendFiles() {
    this.#tell({ kind: 'phase', phase: 'preparing' });
    this.#storedBytes = 0;
    this.#onTheWay.clear();
    const work = [];
    await inLanes(ANNOUNCING_LANES, this.#files.keys(), async (place, signal) => {
      work.push(await this.#announced(place, signal));
      this.#tell({ kind: 'prepared', done: work.length, count: this.#files.length });
    });
    work.sort((one, other) => one.file.place - other.file.place);
    this.#totalBytes = this.#files.reduce((sum, file) => sum + ciphertextSize(file.sizeBytes), 0);
    this.#tell({ kind: 'phase', phase: 'sending' });
    this.#report();
    await inLanes(LANES, jobsOf(work), (job, signal) => this.#sendPart(job, signal));
  }

  // The file as the server knows it, with the parts to seal; those that the server has are only compared.
  async #announced(place, signal) {
    let file = this.#files[place];
    const source = this.#sources.get(file.path);
    const view = file.fileId && (await this.#known(file.fileId, signal));
    // The server may have swept it away; its id never comes back.
    const gone = file.fileId && !view;
    if (gone || source.size !== file.sizeBytes) file = await this.#startedAnew(file);
    const isNew = !file.fileId;
    if (isNew) file = await this.#announce(place, signal);
    const present = new Set(isNew ? [] : view.parts_present);
    const recorded = await this.#store.recordedParts(file);
    // Another time of change may mean other bytes: all digests on record are compared before anything is sent.
    const trusted = source.lastModified === file.modifiedMs;
    const parts = [];
    for (let partNo = 0; partNo < partCount(file.sizeBytes); partNo += 1) {
      const there = present.has(partNo) && recorded.has(partNo);
      if (!there || !trusted) parts.push({ partNo, there });
    }
    this.#storedBytes += ciphertextSize(file.sizeBytes);
    for (const { partNo } of parts) this.#storedBytes -= partSize(file.sizeBytes, partNo);
    const work = { file, parts, left: parts.length, complete: !isNew && view.state === 'complete' };
    if (!parts.length && !work.complete) await this.#complete(work, signal);
    return work;
  }

  async #announce(place, signal) {
    const file = this.#files[place];
    const view = await this.#api.post(
      '/files',
      { size_bytes: ciphertextSize(file.sizeBytes) },
      { key: file.sealing, signal },
    );
    await this.#store.changeFile(file, { fileId: view.file_id });
    this.#files[place] = { ...file, fileId: view.file_id };
    return this.#files[place];
  }

  async #known(fileId, signal) {
    try {
      return await this.#api.get(`/files/${fileId}`, { signal });
    } catch (problem) {
      if (problem instanceof ApiProblem && (problem.status === 404 || problem.status === 410)) return null;
      throw problem;
    }
  }

  async #sendPart(job, signal) {
    const { work, partNo, there } = job;
    const { file } = work;
    const part = await sealPart(await this.#cipherOf(file), file, this.#sources.get(file.path), partNo);
    signal.throwIfAborted();
    try {
      await this.#store.recordDigests(file, partNo, part.digests);
      if (!there) {
        await this.#api.putPart(file.fileId, partNo, part, {
          signal,
          onSent: (sentBytes) => {
            this.#onTheWay.set(job, Math.min(sentBytes, part.body.size));
            this.#report();
          },
        });
      }
    } catch (problem) {
      const differs = problem instanceof SourceDiffers || problem.name === 'part-conflict';
      throw differs ? new MustStartAnew(file) : problem;
    }
    this.#onTheWay.delete(job);
    this.#storedBytes += part.body.size;
    this.#report();
    work.left -= 1;
    if (!work.left) await this.#complete(work, signal);
  }

  async #complete({ file, complete }, signal) {
    this.#ciphers.delete(file.sealing);
    if (complete) return;
    const root = encode(await rootOf(await this.#store.allDigests(file)));
    await this.#api.post(`/files/${file.fileId}/complete`, { root }, { signal });
  }

  // A promise, so that lanes that begin together make one.
  #cipherOf(file) {
    if (!this.#ciphers.has(file.sealing)) {
      this.#ciphers.set(file.sealing, ContentCipher.create(file.fileKey, file.header));
    }
    return this.#ciphers.get(file.sealing);
  }

  // The file with a fresh key; what was sent of it is forgotten.
  async #startedAnew(file) {
    const starts = (this.#freshStarts.get(file.place) ?? 0) + 1;
    if (starts > FRESH_STARTS_MAX) throw new SourceChanging(file.path);
    this.#freshStarts.set(file.place, starts);
    this.#tell({ kind: 'anew', path: file.path });
    const fresh = await sealedAnew(this.#parcel, file, this.#sources.get(file.path));
    await this.#store.replaceFile(file, fresh);
    this.#ciphers.delete(file.sealing);
    this.#files[file.place] = fresh;
    if (file.fileId) await this.#api.forget(`/files/${file.fileId}`);
    return fresh;
  }

  #report() {
    const onTheWay = [...this.#onTheWay.values()].reduce((sum, bytes) => sum + bytes, 0);
    const storedBytes = this.#storedBytes;
    this.#tell({ kind: 'progress', sentBytes: storedBytes + onTheWay, storedBytes, totalBytes: this.#totalBytes });
  }

  // The parcel

  async #makeParcel() {
    const files = this.#files.map((file) => ({ file_id: file.fileId, wrapped_key: encode(file.wrappedKey) }));
    return (await this.#create('/parcels', { files })).parcel_id;
  }

  async #seal() {
    const { parcelId, releaseSecret } = this.#parcel;
    if ((await this.#api.get(`/parcels/${parcelId}`)).state === 'sealed') return;
    const roots = [];
    for (const file of this.#files) roots.push(await rootOf(await this.#store.allDigests(file)));
    const body = { metadata: encode(await this.#sealed(roots)), release_secret: encode(releaseSecret) };
    try {
      await this.#api.post(`/parcels/${parcelId}/seal`, body);
    } catch (problem) {
      // The answer to an attempt was lost on the way; nobody else seals our parcels.
      if (problem.name !== 'parcel-sealed') throw problem;
    }
  }

  async #sealed(roots) {
    const { linkSecret, releaseSecret, description } = this.#parcel;
    return sealMetadata(await metadataKey(linkSecret), {
      ...description,
      files: this.#files.map((file, place) => ({
        path: file.path,
        mediaType: file.mediaType,
        sizeBytes: file.sizeBytes,
        modifiedAt: Math.min(Math.max(Math.floor(file.modifiedMs / 1000), 0), MODIFIED_AT_MAX),
        header: file.header,
        root: roots[place],
      })),
      releaseCommitment: await releaseCommitment(releaseSecret),
      keyCheck: await keyCheck(await parcelKey(linkSecret, releaseSecret)),
    });
  }

  async #makeOffer() {
    const { parcelId, terms } = this.#parcel;
    const offer = await this.#create('/offers', {
      parcel_id: parcelId,
      price: { kind: 'fixed', amount_msat: terms.priceSat * MSAT_PER_SAT },
      policy: { bytes_at: terms.bytesAt, key_at: terms.keyAt },
      expires_at: terms.expiresAt,
      max_downloads: terms.maxDownloads,
    });
    return offer.offer_id;
  }

  // The same request, the same key: a run after a crash creates nothing twice.
  async #create(path, body) {
    const said = new TextEncoder().encode(`${path}\0${JSON.stringify(body)}`);
    const key = encode(new Uint8Array(await crypto.subtle.digest('SHA-256', said)));
    return this.#api.post(path, body, { key });
  }

  async #change(changes) {
    await this.#store.changeParcel(this.#parcel.id, changes);
    Object.assign(this.#parcel, changes);
  }
}

function* jobsOf(works) {
  for (const work of works) for (const { partNo, there } of work.parts) yield { work, partNo, there };
}
