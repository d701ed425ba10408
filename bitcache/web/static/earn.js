// Earns an address with a proof of work, where the server asks for one (docs/PROTOCOL.md, section 6).
//
// The rule it keeps: the page stays usable. The search runs in workers, one for each of a few processors.

import { ApiProblem } from './api.js';
import { decode, encode } from './base64url.js';
import { scriptUrl } from './trusted.js';

const WORKERS_MAX = 4;
// No honest server asks for more: a quarter of an hour or so.
const BITS_MAX = 30;
const ATTEMPTS_MAX = 3;

// `ask(work)` again with what was earned, as often as the server says that an address has to be earned.
// `onWork(share)` is told how much is done of what is needed on average: luck may take it past 1.
export async function askEarning(ask, onWork) {
  let work;
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await ask(work);
    } catch (problem) {
      const asked = problem instanceof ApiProblem && problem.name === 'proof-of-work-required' && problem.work;
      if (!asked || attempt > ATTEMPTS_MAX || !(asked.bits <= BITS_MAX)) throw problem;
      work = await earned(asked, onWork);
    }
  }
}

async function earned({ challenge, bits }, onWork) {
  const seed = new Uint8Array(await crypto.subtle.digest('SHA-256', decode(challenge)));
  const workers = [];
  try {
    const nonce = await new Promise((resolve, reject) => {
      let tried = 0;
      onWork(0);
      for (let i = 0; i < Math.min(navigator.hardwareConcurrency ?? 1, WORKERS_MAX); i += 1) {
        const worker = new Worker(scriptUrl('/static/earn-worker.js'), { type: 'module' });
        workers.push(worker);
        worker.onerror = () => reject(new Error('the worker could not run'));
        worker.onmessage = ({ data }) => {
          if (data.nonce) return resolve(data.nonce);
          tried += data.tried;
          return onWork(tried / 2 ** bits);
        };
        const [high] = crypto.getRandomValues(new Int32Array(1));
        worker.postMessage({ seed, bits, high });
      }
    });
    return { challenge, nonce: encode(nonce) };
  } finally {
    for (const worker of workers) worker.terminate();
  }
}
