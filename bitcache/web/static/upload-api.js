// Calls of an upload: signed in, and repeated until the network or the server is back.

import { ApiProblem, call, retried } from './api.js';
import { Gate } from './upload-lanes.js';
import { putPart } from './upload-part.js';

const PARTS_AT_A_TIME = 3;

export class UploadApi {
  #token;
  #tell;
  #gate = new Gate(PARTS_AT_A_TIME);
  #waiting = false;
  #attemptsMax;

  // `token({fresh})` gives a seller's token; `tell` hears {kind: 'waiting', name, status} and {kind: 'back'}.
  constructor({ token, tell, attemptsMax = Infinity }) {
    this.#token = token;
    this.#tell = tell;
    this.#attemptsMax = attemptsMax;
  }

  get(path, { signal } = {}) {
    return this.#repeated(signal, (token) => call('GET', path, { token, signal }));
  }

  // Only what may be repeated: with an Idempotency-Key, or the same when it comes twice.
  post(path, body, { key, signal } = {}) {
    const headers = key ? { 'Idempotency-Key': key } : {};
    return this.#repeated(signal, (token) => call('POST', path, { body, token, headers, signal }));
  }

  // What is gone already, or still needed, is no trouble.
  async forget(path) {
    try {
      await this.#repeated(null, (token) => call('DELETE', path, { token }));
    } catch (problem) {
      if (!(problem instanceof ApiProblem && [404, 409].includes(problem.status))) throw problem;
    }
  }

  putPart(fileId, partNo, part, { signal, onSent }) {
    return this.#repeated(signal, async (token) => {
      try {
        await this.#gate.through(() => putPart(fileId, partNo, part, { token, signal, onSent }));
      } catch (problem) {
        // The server waits for a part for minutes: on a slow line fewer at a time come through.
        if (problem.status === 408) this.#gate.narrow();
        throw problem;
      }
    });
  }

  async #repeated(signal, attempt) {
    const done = await retried(() => this.#signedIn(attempt), {
      signal,
      attemptsMax: this.#attemptsMax,
      onWaiting: ({ name, status }) => {
        this.#waiting = true;
        this.#tell({ kind: 'waiting', name, status });
      },
    });
    if (this.#waiting) {
      this.#waiting = false;
      this.#tell({ kind: 'back' });
    }
    return done;
  }

  // A token may be withdrawn before its time; a fresh one tells whether the session still lives.
  async #signedIn(attempt) {
    try {
      return await attempt(await this.#token({ fresh: false }));
    } catch (problem) {
      if (!(problem instanceof ApiProblem && problem.status === 401)) throw problem;
    }
    return attempt(await this.#token({ fresh: true }));
  }
}
