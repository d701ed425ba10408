// Fetches the ciphertext while the payment confirms, so that the file is there the moment its key is.

import { ciphertextSize } from './content.js';
import { Errand } from './errand.js';
import { scriptUrl } from './trusted.js';

// `job` as for saveFiles; keys are not needed. Resolves to {outcome}: 'stored', or why not everything is there, none of
// which is a fault: 'no-room', 'busy' (another tab is at it), 'not-supported', 'used-up' (the server gives no more
// before the key is out). saveFiles reads what is there and fetches the rest. Rejects as saveFiles does. What is stored
// stays, also after an abort: called again, it goes on from there.
//
// `onProgress(bytes, totalBytes)`: of ciphertext.
export async function prefetch(job, { onProgress = () => {}, onWaiting, signal, tuning = {} } = {}) {
  signal?.throwIfAborted();
  const totalBytes = job.files.reduce((bytes, file) => bytes + ciphertextSize(file.sizeBytes), 0);
  const worker = new Worker(scriptUrl('/static/save-worker.js'), { type: 'module' });
  const { port1, port2 } = new MessageChannel();
  const told = { onProgress: (bytes) => onProgress(bytes, totalBytes), onWaiting, signal };
  const errand = new Errand(port1, told);
  worker.addEventListener('error', () => errand.resolve('not-supported'));
  try {
    worker.postMessage({ type: 'prefetch', job: { ...job, tuning } }, [port2]);
    return { outcome: await errand.done };
  } finally {
    errand.cancel();
    worker.terminate();
  }
}
