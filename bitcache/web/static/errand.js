// A long piece of work in a worker and the page that waits for it, over a MessagePort.
//
//   worker -> page   {type: 'ready' | 'started'}, {type: 'progress', bytes}, {type: 'waiting', error},
//                    {type: 'done', result}, {type: 'failed', error}
//   page -> worker   {type: 'cancel'}
//
// The worker speaks several times a second, also when nothing happens: so the page knows that it lives, and answers.

import { ApiProblem } from './api.js';
import { FormatError } from './errors.js';

const TELL_MS = 200;
const LOOK_MS = 5_000;
const SILENT_LOOKS_MAX = 6;

// What keeps a browser from saving, but for what the API and the format have errors for. `kind` is one of:
//
//   cancelled     told to stop, by the browser's own list of downloads
//   worker-lost   the worker went silent: what the browser saved is not whole
//   no-room       the private file system is full
//   way-closed    this way of saving is not there; nothing was begun
//   no-way        this browser cannot save, or not so much
//   failed        anything else; the message is for developers
export class SaveError extends Error {
  constructor(kind, message) {
    super(message);
    this.name = 'SaveError';
    this.kind = kind;
  }
}

// In the worker: does `work({signal, onProgress(bytes), onWaiting(problem), say(type)})`, and tells the page how it
// ends. Never rejects.
export async function carryOut(port, work) {
  const stop = new AbortController();
  port.onmessage = () => stop.abort(new DOMException('the page wants no more', 'AbortError'));
  let bytes = 0;
  const telling = setInterval(() => port.postMessage({ type: 'progress', bytes }), TELL_MS);
  try {
    const result = await work({
      signal: stop.signal,
      onProgress: (doneBytes) => {
        bytes = doneBytes;
      },
      onWaiting: (problem) => port.postMessage({ type: 'waiting', error: plainError(problem) }),
      say: (type) => port.postMessage({ type }),
    });
    port.postMessage({ type: 'progress', bytes });
    port.postMessage({ type: 'done', result });
  } catch (error) {
    port.postMessage({ type: 'failed', error: plainError(error) });
  } finally {
    // Nothing may go on fetching, however the work ended.
    stop.abort();
    clearInterval(telling);
  }
}

// In the page: the errand at the other end of `port`. `onAlive()` is called whenever something is heard.
export class Errand {
  #expected = new Map();
  #silentLooks = 0;

  constructor(port, { signal, onProgress, onWaiting, onAlive, lookMs = LOOK_MS } = {}) {
    Object.assign(this, { port, signal, onProgress, onWaiting, onAlive });
    // Its result.
    this.done = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.done.catch(() => {});
    this.stop = () => this.#end(this.reject, this.signal.reason);
    signal?.addEventListener('abort', this.stop, { once: true });
    // Looks are counted, not time: a computer that slept has missed both.
    this.looking = setInterval(() => {
      this.#silentLooks += 1;
      if (this.#silentLooks > SILENT_LOOKS_MAX) {
        this.#end(this.reject, new SaveError('worker-lost', 'nothing was heard of the worker'));
      }
    }, lookMs);
    port.onmessage = (event) => this.#hear(event.data);
    if (signal?.aborted) this.stop();
  }

  // Resolves when the worker says `type`; rejects with 'way-closed' if it has not after that time.
  async heard(type, limitMs) {
    const said = new Promise((resolve) => this.#expected.set(type, resolve));
    let timer;
    const late = new Promise((resolve, reject) => {
      timer = setTimeout(() => reject(new SaveError('way-closed', `the worker did not say ${type}`)), limitMs);
    });
    try {
      await Promise.race([said, this.done, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  cancel() {
    this.#end(this.reject, new SaveError('cancelled', 'given up'));
  }

  #hear(told) {
    this.#silentLooks = 0;
    this.onAlive?.();
    if (told.type === 'progress') this.onProgress?.(told.bytes);
    else if (told.type === 'waiting') this.onWaiting?.(errorFrom(told.error));
    else if (told.type === 'done') this.#end(this.resolve, told.result);
    else if (told.type === 'failed') this.#end(this.reject, errorFrom(told.error));
    else this.#expected.get(told.type)?.();
  }

  #end(settle, outcome) {
    settle(outcome);
    clearInterval(this.looking);
    this.signal?.removeEventListener('abort', this.stop);
    this.port.onmessage = null;
    this.port.postMessage({ type: 'cancel' });
  }
}

// Errors lose their class on their way between threads.

function plainError(error) {
  const { kind, message, path, chunkIndex } = error;
  if (error instanceof ApiProblem) {
    const { status, name, detail, field, retryAfterS } = error;
    return { type: 'api', path, fields: { status, name, detail, field, retryAfterS } };
  }
  if (error instanceof FormatError) return { type: 'format', path, kind, message, chunkIndex };
  if (error.name === 'AbortError') return { type: 'save', kind: 'cancelled', message };
  if (error.name === 'QuotaExceededError') return { type: 'save', kind: 'no-room', message };
  if (error instanceof SaveError) return { type: 'save', path, kind, message };
  return { type: 'save', path, kind: 'failed', message: `${error.name}: ${message}` };
}

function errorFrom(plain) {
  const { type, kind, message, chunkIndex, fields, path } = plain;
  const error =
    type === 'api'
      ? new ApiProblem(fields)
      : type === 'format'
        ? new FormatError(kind, message, { chunkIndex })
        : new SaveError(kind, message);
  return path === undefined ? error : Object.assign(error, { path });
}
