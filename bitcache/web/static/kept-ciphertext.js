// Ciphertext that was fetched ahead of its key, in this browser's private file system (OPFS):
//
//   ciphertext/{invoice id}/{file id}      the first bytes of the file's ciphertext, in order
//
// It is a copy that may be damaged, cut short or swept away by the browser at any time: whoever reads it checks it.

import { CHUNK_BYTES } from './content.js';

const FOLDER = 'ciphertext';

// The folder of an invoice. Throws NotFoundError without `create`, and others where the browser has no such thing.
export async function invoiceFolder(invoiceId, { create = false } = {}) {
  const root = await navigator.storage.getDirectory();
  return (await root.getDirectoryHandle(FOLDER, { create })).getDirectoryHandle(invoiceId, { create });
}

// Whole chunks that `heldBytes` of a file of `ciphertextBytes` are.
export const wholeBytes = (heldBytes, ciphertextBytes) =>
  heldBytes >= ciphertextBytes ? ciphertextBytes : heldBytes - (heldBytes % CHUNK_BYTES);

// Reads what is there of a file; null where nothing is.
export async function keptCiphertext(invoiceId, file) {
  try {
    const held = await (await (await invoiceFolder(invoiceId)).getFileHandle(file.fileId)).getFile();
    return new KeptCiphertext(held, wholeBytes(held.size, file.ciphertextBytes));
  } catch {
    return null;
  }
}

class KeptCiphertext {
  constructor(held, heldBytes) {
    Object.assign(this, { held, heldBytes });
  }

  // The bytes there, or null where they are not.
  async read(start, lengthBytes) {
    if (start + lengthBytes > this.heldBytes) return null;
    try {
      return new Uint8Array(await this.held.slice(start, start + lengthBytes).arrayBuffer());
    } catch {
      return null; // swept away
    }
  }
}

// Removes what was fetched ahead for an invoice: everything, or only those files. Never throws.
export async function forgetKept(invoiceId, fileIds = null) {
  try {
    const folder = await invoiceFolder(invoiceId);
    for await (const name of folder.keys()) {
      if (!fileIds || fileIds.includes(name)) await folder.removeEntry(name).catch(() => {});
    }
    const root = await navigator.storage.getDirectory();
    // Refused as long as something is in it.
    await (await root.getDirectoryHandle(FOLDER)).removeEntry(invoiceId).catch(() => {});
  } catch {
    // There was nothing.
  }
}
