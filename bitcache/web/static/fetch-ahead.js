// Fetches ciphertext before its key is out, in a worker: checked by digest, kept as kept-ciphertext.js says. What is
// there from an earlier time is not fetched again.

import { ApiProblem, pause } from './api.js';
import { Ciphertext } from './ciphertext.js';
import { CHUNK_BYTES, ciphertextSize } from './content.js';
import { Grant } from './grant.js';
import { invoiceFolder, wholeBytes } from './kept-ciphertext.js';

// Left to everything else this browser stores for us.
const RESERVE_BYTES = 64 << 20;
// A file stays locked for a moment after the tab that wrote it was closed.
const LOCKED_LOOKS_MAX = 25;
const LOCKED_LOOK_MS = 200;

// Resolves to 'stored', or to why not everything is: 'no-room', 'busy' (another tab is at it), 'not-supported', or
// 'used-up' (the server gives no more before the key). Throws what `Ciphertext` throws.
export async function fetchAhead(job, { signal, onProgress, onWaiting }) {
  const grant = new Grant(job);
  let doneBytes = 0;
  try {
    const folder = await folderOf(job);
    for (const file of job.files) {
      const whole = { ...file, ciphertextBytes: ciphertextSize(file.sizeBytes) };
      const onChunk = (lengthBytes) => onProgress((doneBytes += lengthBytes));
      await fetchFile(job, whole, grant, folder, { signal, onWaiting, onChunk });
    }
  } catch (error) {
    if (error instanceof Stop) return error.message;
    if (error.name === 'QuotaExceededError') return 'no-room';
    if (error instanceof ApiProblem && error.name === 'grant-exhausted') return 'used-up';
    throw error;
  }
  return 'stored';
}

class Stop extends Error {}

async function folderOf(job) {
  let folder;
  let room;
  try {
    folder = await invoiceFolder(job.invoiceId, { create: true });
    room = await navigator.storage.estimate();
  } catch {
    throw new Stop('not-supported');
  }
  let neededBytes = RESERVE_BYTES;
  for (const file of job.files) {
    neededBytes += ciphertextSize(file.sizeBytes) - (await heldBytes(folder, file.fileId));
  }
  // Some browsers tell of more room than there is: whoever writes sees.
  if (room.quota - room.usage < neededBytes) throw new Stop('no-room');
  return folder;
}

async function heldBytes(folder, fileId) {
  try {
    return (await (await folder.getFileHandle(fileId)).getFile()).size;
  } catch {
    return 0;
  }
}

async function fetchFile(job, file, grant, folder, { signal, onWaiting, onChunk }) {
  const handle = await folder.getFileHandle(file.fileId, { create: true });
  const access = await locked(handle, signal);
  const held = wholeBytes(access.getSize(), file.ciphertextBytes);
  onChunk(held);
  let ciphertext = null;
  try {
    if (held === file.ciphertextBytes) return;
    ciphertext = new Ciphertext(job.offerId, file, grant, { signal, onWaiting, ...job.tuning });
    for (let index = held / CHUNK_BYTES; index < ciphertext.chunks; index += 1) {
      const chunk = await ciphertext.checked(index, await ciphertext.read(index));
      const written = access.write(chunk, { at: index * CHUNK_BYTES });
      if (written < chunk.length) throw new Stop('no-room');
      onChunk(chunk.length);
      ciphertext.done(chunk);
    }
    access.flush();
  } finally {
    ciphertext?.close();
    access.close();
  }
}

async function locked(handle, signal) {
  for (let look = 0; ; look += 1) {
    try {
      return await handle.createSyncAccessHandle();
    } catch (error) {
      if (error.name !== 'NoModificationAllowedError') throw new Stop('not-supported');
      if (look === LOCKED_LOOKS_MAX) throw new Stop('busy');
    }
    await pause(LOCKED_LOOK_MS, signal);
  }
}
