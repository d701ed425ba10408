// A parcel as the server shows it, opened and checked before anything of it is shown, paid or used (docs/FORMAT.md,
// section 11). The server is not trusted with what it could swap: names, sizes, roots and keys come from the seller's
// sealed metadata, or are proven by it.

import { decode } from './base64url.js';
import { sameBytes } from './bytes.js';
import { ciphertextSize } from './content.js';
import { FormatError } from './errors.js';
import { metadataKey, provenParcelKey, unwrapFileKey } from './keys.js';
import { openMetadata } from './metadata.js';

// Steps 1 and 2, of an offer or a claim as the API gives it:
//
//   {title, note, preview, files: [{fileId, path, mediaType, sizeBytes, ciphertextBytes, modifiedAt, header, root}],
//    releaseCommitment, keyCheck}
//
// Throws FormatError: of openMetadata, or 'parcel-mismatch' where the server lists other files than the seller did.
export async function openParcel(view, linkSecret) {
  const document = await openMetadata(await metadataKey(linkSecret), decode(view.metadata));
  checkListed(document.files, view);
  return {
    ...document,
    files: document.files.map((file, place) => ({
      ...file,
      fileId: view.files[place].file_id,
      ciphertextBytes: ciphertextSize(file.sizeBytes),
    })),
  };
}

// Steps 5 and 6: gives each file of `parcel` its `fileKey`, and returns the parcel. `view` is the claim with the
// wrapped keys. Throws FormatError 'release-secret-wrong', 'key-unwrap-failed', 'parcel-mismatch'.
export async function unlock(parcel, view, linkSecret, releaseSecret) {
  const key = await provenParcelKey(linkSecret, releaseSecret, parcel);
  checkListed(parcel.files, view);
  const fileKeys = await Promise.all(
    parcel.files.map((file, place) => unwrapFileKey(key, decode(view.files[place].wrapped_key), file.header)),
  );
  parcel.files.forEach((file, place) => {
    file.fileKey = fileKeys[place];
  });
  return parcel;
}

function checkListed(files, view) {
  if (view.files.length !== files.length) {
    throw new FormatError('parcel-mismatch', `${view.files.length} files are listed, ${files.length} were sealed`);
  }
  files.forEach((file, place) => {
    const listed = view.files[place];
    if (listed.size_bytes !== ciphertextSize(file.sizeBytes) || !sameBytes(decode(listed.root), file.root)) {
      throw new FormatError('parcel-mismatch', `file ${place} of the list is not the one the seller sealed`);
    }
    if (file.fileId !== undefined && file.fileId !== listed.file_id) {
      throw new FormatError('parcel-mismatch', `file ${place} has another id than before`);
    }
  });
}
