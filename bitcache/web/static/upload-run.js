// One run of an upload: a worker of its own, the token it asks for, and its end.
//
// Ended at any moment it loses nothing: what counts is on record before it is sent.

import { pause } from './api.js';
import { sellerToken } from './seller-token.js';
import { scriptUrl } from './trusted.js';

const AGAIN_MS = 2_000;

export class UploadRun {
  #worker = null;
  #ended = new AbortController();

  // `hear(news)` is told what upload-worker tells, but for its questions.
  constructor({ id, sources, hear }) {
    this.#begin({ kind: 'run', id, sources }, hear);
  }

  end() {
    this.#ended.abort();
    this.#worker.terminate();
  }

  #begin(order, hear) {
    const worker = new Worker(scriptUrl('/static/upload-worker.js'), { type: 'module' });
    this.#worker = worker;
    let ready = false;
    worker.addEventListener('message', ({ data }) => {
      // What it said last may still be on its way.
      if (this.#ended.signal.aborted) return;
      if (data.kind === 'ready') {
        ready = true;
        worker.postMessage(order);
      } else if (data.kind === 'token') {
        answer(worker, data);
      } else {
        hear(data);
      }
    });
    worker.addEventListener('error', async ({ message }) => {
      worker.terminate();
      if (ready) {
        hear({ kind: 'stopped', why: { name: 'other', status: 0, detail: message ?? '', path: null } });
        return;
      }
      // Its script could not be loaded.
      hear({ kind: 'waiting', name: 'unreachable', status: 0 });
      try {
        await pause(AGAIN_MS, this.#ended.signal);
      } catch {
        return; // ended meanwhile
      }
      this.#begin(order, hear);
    });
  }
}

// The worker has neither cookie nor page: it asks here.
async function answer(worker, { fresh }) {
  try {
    worker.postMessage({ kind: 'token', token: await sellerToken({ fresh }) });
  } catch (problem) {
    const { status = 0, name, message, detail = message } = problem;
    worker.postMessage({ kind: 'token', problem: { status, name: status ? name : 'unreachable', detail } });
  }
}
