// Digests of ciphertext (docs/FORMAT.md, section 6): SHA-256 of each chunk, and one root over them.
//
// A list of digests is always their concatenation, 32 bytes per chunk, as it is sent and stored. It counts only once
// its root is the one of the metadata, and a chunk counts only if its digest is in its place of the list.

import { sameBytes } from './bytes.js';
import { FormatError } from './errors.js';

export const DIGEST_BYTES = 32;

// Of chunk 0 with its header.
export const chunkDigest = async (chunk) => new Uint8Array(await crypto.subtle.digest('SHA-256', chunk));

// Throws FormatError 'digests-invalid'.
export async function rootOf(digests) {
  if (digests.length === 0 || digests.length % DIGEST_BYTES !== 0) {
    throw new FormatError('digests-invalid', `${digests.length} bytes are not a list of digests`);
  }
  return new Uint8Array(await crypto.subtle.digest('SHA-256', digests));
}

// Throws FormatError 'digests-invalid' unless there is a digest for each of `chunks`, 'root-mismatch' if their root
// is another: the file was swapped or altered.
export async function checkDigests(digests, root, chunks) {
  if (digests.length !== chunks * DIGEST_BYTES) {
    throw new FormatError('digests-invalid', `${digests.length} bytes of digests for ${chunks} chunks`);
  }
  if (!sameBytes(await rootOf(digests), root)) {
    throw new FormatError('root-mismatch', 'the digests are those of another file');
  }
}

// Throws FormatError 'digest-mismatch' unless `chunk` has digest `index` of the list.
export async function checkChunk(index, chunk, digests) {
  const expected = digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
  if (!sameBytes(await chunkDigest(chunk), expected)) {
    throw new FormatError('digest-mismatch', `chunk ${index} is another one`, { chunkIndex: index });
  }
}
