// A download written into the browser's private file system (OPFS), from where the page hands it to the downloads:
//
//   saved/{milliseconds}-{uuid}      plaintext, deleted when it is old enough to have been copied

import { begun, forgetSaved, openDownload } from './download.js';
import { SaveError } from './errand.js';

const FOLDER = 'saved';
const KEPT_MS = 3_600_000;

// In a worker. Resolves to {handle, name}; throws SaveError 'way-closed' before anything began where it cannot be.
export async function saveInPrivateFile(job, { signal, onProgress, onWaiting, say }) {
  const { name, lengthBytes, pieces } = openDownload(job, { signal, onWaiting, ...job.tuning });
  const { folder, handle, access } = await newFile(lengthBytes);
  say('started');
  let whole = false;
  try {
    let bytes = 0;
    for await (const piece of await begun(pieces)) {
      const written = access.write(piece, { at: bytes });
      if (written < piece.length) throw new SaveError('no-room', 'the file system took only a part');
      bytes += piece.length;
      onProgress(bytes);
    }
    access.flush();
    whole = true;
  } finally {
    access.close();
    // What is not whole is nobody's file.
    if (!whole) await folder.removeEntry(handle.name).catch(() => {});
  }
  await forgetSaved(job);
  return { handle, name };
}

async function newFile(lengthBytes) {
  try {
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle(FOLDER, { create: true });
    await removeOld(folder);
    const { quota, usage } = await navigator.storage.estimate();
    if (quota - usage < lengthBytes) throw new Error('there is no room');
    const handle = await folder.getFileHandle(`${Date.now()}-${crypto.randomUUID()}`, { create: true });
    return { folder, handle, access: await handle.createSyncAccessHandle() };
  } catch (error) {
    throw new SaveError('way-closed', `no private file: ${error.message}`);
  }
}

async function removeOld(folder) {
  for await (const name of folder.keys()) {
    if (Number(name.split('-')[0]) < Date.now() - KEPT_MS) await folder.removeEntry(name).catch(() => {});
  }
}
