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
const PIECE_BYTES = 512 << 10;

export class RangeSource {
  #offset;
  #rest = null;
  #connection = null;
  #renewed = false;

  // Bytes from `offset` to `end` of `file`'s ciphertext, by default all. `options`: {signal, onWaiting, stallMs}.
  constructor(offerId, file, grant, options = {}, { offset = 0, end = file.ciphertextBytes } = {}) {
    Object.assign(this, { offerId, file, grant, end, signal: options.signal, stallMs: options.stallMs ?? STALL_MS });
    this.patience = new Patience(options);
    this.#offset = offset;
  }

  // Fills `whole` with the bytes from `offset` on. Cheap where the read before ended there.
  async read(offset, whole) {
    if (offset !== this.#offset) this.#seek(offset);
    for (let filled = 0; filled < whole.length; ) {
      const piece = this.#rest ?? (await this.#piece(whole.length - filled));
      const used = piece.subarray(0, whole.length - filled);
      whole.set(used, filled);
      filled += used.length;
      this.#offset += used.length;
      this.#rest = used.length < piece.length ? piece.subarray(used.length) : null;
    }
  }

  close() {
    this.#connection?.controller.abort();
    this.#connection = null;
  }

  #seek(offset) {
    this.close();
    this.#rest = null;
    this.#offset = offset;
  }

  async #piece(wantedBytes) {
    for (;;) {
      try {
        this.#connection ??= await this.#connect();
        const piece = await this.#next(this.#connection, wantedBytes);
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
    // Asked for only when nothing is left over: this is where the next byte belongs.
    const first = this.#offset;
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
    return { controller, leftBytes: last - first + 1, ...readerOf(answer.body) };
  }

  // The next bytes of a connection, or null where it has given all. Good until the next call.
  async #next(connection, wantedBytes) {
    const { value, done } = await this.#timely(connection.controller, connection.read(wantedBytes));
    if (done && connection.leftBytes === 0) return null;
    if (done || value.length > connection.leftBytes) {
      throw new ApiProblem({ status: 0, name: 'unreachable', detail: 'The answer was cut off.' });
    }
    connection.leftBytes -= value.length;
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

// {read(wantedBytes)}: as a reader's `read`, into one memory over and over where the browser can. A megabyte from the
// heap for each megabyte that comes costs more than all decryption. What was wanted goes out of it at once, because a
// read that fails takes the memory with it.
function readerOf(body) {
  let reader;
  try {
    reader = body.getReader({ mode: 'byob' });
  } catch {
    reader = body.getReader();
    return { read: () => reader.read() };
  }
  let memory = new ArrayBuffer(PIECE_BYTES);
  const read = async (wantedBytes) => {
    const { value, done } = await reader.read(new Uint8Array(memory, 0, Math.min(PIECE_BYTES, wantedBytes)));
    if (value) memory = value.buffer;
    return { value, done };
  };
  return { read };
}
