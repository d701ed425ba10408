// The ciphertext of one file from the server: read in order, over one connection at a time.
//
// The rule it keeps: a byte that arrived is not asked for again. A connection that is cut, refused for now or silent
// for too long is made anew at the exact byte where it ended; a token that ran out is renewed. What will not get
// better, such as a payment that left the chain, is thrown at once.

import { ApiProblem, Patience, call, reached } from './api.js';
import { encode } from './base64url.js';
import { FormatError } from './errors.js';

// Long ranges cost fewer round trips; each one is a chance for the server to look at the grant again.
const RANGE_BYTES = 64 << 20;
const STALL_MS = 30_000;

export class RangeSource {
  #offset;
  #received;
  #rest = null;
  #connection = null;
  #renewed = false;

  // Bytes from `offset` to `end` of `file`'s ciphertext, by default all. `options`: {signal, onWaiting, stallMs}.
  constructor(offerId, file, grant, options = {}, { offset = 0, end = file.ciphertextBytes } = {}) {
    Object.assign(this, { offerId, file, grant, end, signal: options.signal, stallMs: options.stallMs ?? STALL_MS });
    this.patience = new Patience(options);
    this.#offset = offset;
    this.#received = offset;
  }

  // Exactly the bytes there. Cheap where the read before ended at `offset`.
  async read(offset, lengthBytes) {
    if (offset !== this.#offset) this.#seek(offset);
    const whole = new Uint8Array(lengthBytes);
    for (let filled = 0; filled < lengthBytes; ) {
      const piece = this.#rest ?? (await this.#piece());
      const used = piece.subarray(0, lengthBytes - filled);
      whole.set(used, filled);
      filled += used.length;
      this.#offset += used.length;
      this.#rest = used.length < piece.length ? piece.subarray(used.length) : null;
    }
    return whole;
  }

  close() {
    this.#connection?.controller.abort();
    this.#connection = null;
  }

  #seek(offset) {
    this.close();
    this.#rest = null;
    this.#offset = offset;
    this.#received = offset;
  }

  async #piece() {
    for (;;) {
      try {
        this.#connection ??= await this.#connect();
        const piece = await this.#next(this.#connection);
        if (piece) return piece;
        this.#connection = null;
      } catch (problem) {
        this.close();
        await this.#recover(problem);
      }
    }
  }

  async #connect() {
    const controller = new AbortController();
    const signal = this.signal ? AbortSignal.any([this.signal, controller.signal]) : controller.signal;
    const token = await this.grant.token(this.signal);
    const first = this.#received;
    const last = Math.min(first + RANGE_BYTES, this.end) - 1;
    const headers = { Range: `bytes=${first}-${last}`, 'If-Range': `"${encode(this.file.root)}"` };
    const path = `/offers/${this.offerId}/files/${this.file.fileId}/content`;
    const opening = call('GET', path, { token, headers, signal, octets: true });
    const answer = await this.#timely(controller, opening).catch(async (problem) => {
      if (problem.status === 401) await this.grant.refused(token);
      throw problem;
    });
    if (answer.status !== 206) {
      controller.abort();
      throw new FormatError('root-mismatch', 'the server has another file here, or ignores ranges');
    }
    if (answer.headers.get('Content-Range') !== `bytes ${first}-${last}/${this.file.ciphertextBytes}`) {
      controller.abort();
      throw new ApiProblem({ status: 206, name: 'answer-wrong', detail: 'Other bytes came than those asked for.' });
    }
    return { controller, reader: answer.body.getReader(), leftBytes: last - first + 1 };
  }

  // The next bytes of a connection, or null where it has given all.
  async #next(connection) {
    const { value, done } = await this.#timely(connection.controller, connection.reader.read());
    if (done && connection.leftBytes === 0) return null;
    if (done || value.length > connection.leftBytes) {
      throw new ApiProblem({ status: 0, name: 'unreachable', detail: 'The answer was cut off.' });
    }
    connection.leftBytes -= value.length;
    this.#received += value.length;
    this.#renewed = false;
    this.patience.progress();
    return value;
  }

  // A connection may break without a word: it counts as lost when nothing comes.
  #timely(controller, waiting) {
    return reached(this.signal, async () => {
      const timer = setTimeout(() => controller.abort(), this.stallMs);
      try {
        return await waiting;
      } finally {
        clearTimeout(timer);
      }
    });
  }

  async #recover(problem) {
    if (problem.status === 401 && !this.#renewed) {
      this.#renewed = true;
      return;
    }
    await this.patience.after(problem);
  }
}
