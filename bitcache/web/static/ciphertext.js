// The checked ciphertext of one file, chunk by chunk (docs/FORMAT.md, section 11, steps 3 and 4): from this browser's
// own storage as far as it is there, else from the server. No key is needed.

import { call, reached, retried } from './api.js';
import { CHUNK_BYTES, chunkCount } from './content.js';
import { DIGEST_BYTES, checkChunk, checkDigests, chunkDigest } from './digests.js';
import { FormatError } from './errors.js';
import { RangeSource } from './range-source.js';

// A chunk damaged on its way is another one when it comes again; one damaged on the server's disk is not.
const FETCHED_AGAIN_MAX = 2;
const SPARE_MAX = 4;
const DIGESTS_TIMEOUT_MS = 60_000;

export class Ciphertext {
  #digests;
  #spare = [];

  // `kept`: what `keptCiphertext` found, or null. `options`: {signal, onWaiting, stallMs}.
  constructor(offerId, file, grant, { kept = null, ...options } = {}) {
    Object.assign(this, { offerId, file, grant, kept, options, chunks: chunkCount(file.sizeBytes) });
    this.source = new RangeSource(offerId, file, grant, options);
    // Fetched while the first bytes are on their way.
    this.#digests = this.chunks === 1 ? null : this.#fetchDigests();
    this.#digests?.catch(() => {});
  }

  // Chunk `index` as it came, not checked yet. Meant to be read in order.
  async read(index) {
    const { start, lengthBytes } = this.#place(index);
    const kept = await this.kept?.read(start, lengthBytes);
    if (kept) return kept;
    const chunk = new Uint8Array(this.#spare.pop() ?? new ArrayBuffer(CHUNK_BYTES), 0, lengthBytes);
    await this.source.read(start, chunk);
    return chunk;
  }

  // `chunk` is not needed any more: its memory is used for another one.
  done(chunk) {
    const reusable = chunk.buffer.byteLength === CHUNK_BYTES && this.#spare.length < SPARE_MAX;
    if (reusable) this.#spare.push(chunk.buffer);
  }

  // `chunk`, or the good one where that was damaged. Throws FormatError 'digest-mismatch' where there is none,
  // 'root-mismatch' or 'digests-invalid' where the server has another file.
  async checked(index, chunk) {
    let candidate = chunk;
    for (let again = 0; ; again += 1) {
      try {
        await this.#check(index, candidate);
        return candidate;
      } catch (error) {
        if (error.kind !== 'digest-mismatch' || again === FETCHED_AGAIN_MAX) throw error;
      }
      candidate = await this.#fetchAlone(index);
    }
  }

  close() {
    this.source.close();
  }

  #place(index) {
    const start = index * CHUNK_BYTES;
    return { start, lengthBytes: Math.min(CHUNK_BYTES, this.file.ciphertextBytes - start) };
  }

  async #check(index, chunk) {
    if (this.#digests) return checkChunk(index, chunk, await this.#digests);
    try {
      return await checkDigests(await chunkDigest(chunk), this.file.root, 1);
    } catch (error) {
      throw new FormatError('digest-mismatch', error.message, { chunkIndex: index });
    }
  }

  // Beside the connection that reads on.
  async #fetchAlone(index) {
    const { start, lengthBytes } = this.#place(index);
    const part = { offset: start, end: start + lengthBytes };
    const source = new RangeSource(this.offerId, this.file, this.grant, this.options, part);
    try {
      const chunk = new Uint8Array(lengthBytes);
      await source.read(start, chunk);
      return chunk;
    } finally {
      source.close();
    }
  }

  async #fetchDigests() {
    const { signal } = this.options;
    const path = `/offers/${this.offerId}/files/${this.file.fileId}/digests`;
    const digests = await retried(async () => {
      const limit = AbortSignal.timeout(DIGESTS_TIMEOUT_MS);
      const both = signal ? AbortSignal.any([signal, limit]) : limit;
      return reached(signal, async () =>
        atMost(await call('GET', path, { signal: both, octets: true }), this.chunks * DIGEST_BYTES),
      );
    }, this.options);
    await checkDigests(digests, this.file.root, this.chunks);
    return digests;
  }
}

// The body of `answer`, refused as soon as it is longer: no answer may fill the memory.
async function atMost(answer, lengthBytes) {
  const whole = new Uint8Array(lengthBytes);
  let filled = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) break;
    if (filled + value.length > lengthBytes) {
      await reader.cancel();
      throw new FormatError('digests-invalid', `more than ${lengthBytes} bytes came`);
    }
    whole.set(value, filled);
    filled += value.length;
  }
  return whole.subarray(0, filled);
}
