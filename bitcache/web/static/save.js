// Saves what a buyer paid for, by the first way this browser has:
//
//   service-worker   streams into the browser's own downloads; nothing is stored twice
//   opfs             into the browser's private file system, and from there to the downloads
//   blob             in memory, for small files
//
// Each way verifies and decrypts the same stream (download.js). A way that began is not changed for another.

import { Errand, SaveError } from './errand.js';
import { begun, forgetSaved, openDownload } from './download.js';
import { pause } from './api.js';
import { scriptUrl } from './trusted.js';

const START_MS = 8_000;
const PING_MS = 10_000;
const BLOB_BYTES_MAX = 512 << 20;
// A browser copies the file when it likes: until then its source must stay.
const SOURCE_KEPT_MS = 600_000;

const WAYS = { 'service-worker': byServiceWorker, opfs: byPrivateFile, blob: byBlob };

// `job` as download.js has it; more than one file become the archive `job.zipName`. Resolves to {way} when the browser
// has everything. Rejects with an error that has a `kind`: ApiProblem, FormatError, SaveError, or the signal's reason;
// and with the `path` of the file, where it is about one.
//
// `onProgress(bytes, totalBytes)`: of what is saved. `onWaiting(problem)`: the network is away, it goes on by itself.
// `way` and `tuning` ({stallMs, lookMs}) are for tests.
export async function saveFiles(job, { onProgress = () => {}, onWaiting, signal, way = null, tuning = {} } = {}) {
  signal?.throwIfAborted();
  const { lengthBytes } = openDownload(job);
  const told = { onProgress: (bytes) => onProgress(bytes, lengthBytes), onWaiting, signal, ...tuning };
  for (const name of way ? [way] : Object.keys(WAYS)) {
    try {
      await WAYS[name]({ ...job, tuning: { stallMs: tuning.stallMs } }, told);
      return { way: name };
    } catch (error) {
      if (error.kind !== 'way-closed') throw error;
    }
  }
  throw new SaveError('no-way', 'this browser cannot save, or not so much');
}

async function byServiceWorker(job, options) {
  const worker = await activeWorker();
  const { port1, port2 } = new MessageChannel();
  let pingedAt = 0;
  const onAlive = () => {
    // In answer to the worker, not by a clock of the page: those nearly stop in a tab that nobody looks at.
    if (performance.now() - pingedAt < PING_MS) return;
    pingedAt = performance.now();
    worker.postMessage({ type: 'ping' });
  };
  const errand = new Errand(port1, { ...options, onAlive });
  const frame = document.createElement('iframe');
  frame.hidden = true;
  try {
    const nonce = crypto.randomUUID();
    worker.postMessage({ type: 'save', nonce, job }, [port2]);
    await errand.heard('ready', START_MS);
    frame.src = `/sw-dl/${nonce}`;
    document.body.append(frame);
    await errand.heard('started', START_MS);
    await errand.done;
  } finally {
    errand.cancel();
    frame.remove();
  }
}

// The newest version of our service worker. Throws 'way-closed' where there can be none.
async function activeWorker() {
  try {
    const options = { type: 'module', updateViaCache: 'none', scope: '/' };
    const registering = navigator.serviceWorker.register(scriptUrl('/sw.js'), options);
    const registration = await Promise.race([registering, late()]);
    const worker = registration.installing ?? registration.waiting ?? registration.active;
    registration.waiting?.postMessage({ type: 'take-over' });
    await Promise.race([activated(worker), late()]);
    return worker;
  } catch (error) {
    throw new SaveError('way-closed', `no service worker: ${error.message}`);
  }
}

async function late() {
  await pause(START_MS);
  throw new Error('it takes too long');
}

function activated(worker) {
  return new Promise((resolve, reject) => {
    const look = () => {
      if (worker.state === 'activated') resolve();
      else if (worker.state === 'redundant') reject(new Error('it could not start'));
      else if (worker.state === 'installed') worker.postMessage({ type: 'take-over' });
    };
    worker.addEventListener('statechange', look);
    look();
  });
}

async function byPrivateFile(job, options) {
  const worker = new Worker(scriptUrl('/static/save-worker.js'), { type: 'module' });
  const { port1, port2 } = new MessageChannel();
  const errand = new Errand(port1, options);
  try {
    worker.postMessage({ type: 'save', job }, [port2]);
    await errand.heard('started', START_MS);
    const { handle, name } = await errand.done;
    handOver([await handle.getFile()], name);
  } finally {
    errand.cancel();
    worker.terminate();
  }
}

async function byBlob(job, { onProgress, onWaiting, signal }) {
  const { name, lengthBytes, pieces } = openDownload(job, { signal, onWaiting, ...job.tuning });
  if (lengthBytes > BLOB_BYTES_MAX) throw new SaveError('way-closed', 'too large for the memory');
  const parts = [];
  let bytes = 0;
  for await (const piece of await begun(pieces)) {
    // A Blob of its own each: browsers may put those on disk.
    parts.push(new Blob([piece]));
    bytes += piece.length;
    onProgress(bytes);
  }
  handOver(parts, name);
  await forgetSaved(job);
}

// To the browser's downloads, under that name.
function handOver(parts, name) {
  const link = document.createElement('a');
  // Of a type without a suffix: browsers add theirs to a name that has none.
  link.href = URL.createObjectURL(new Blob(parts, { type: 'application/octet-stream' }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), SOURCE_KEPT_MS);
}
