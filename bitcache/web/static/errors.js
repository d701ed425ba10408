// What can be wrong with encrypted files, as the words of docs/FORMAT.md, section 14:
//
//   secret-size-wrong  header-invalid  size-impossible  chunk-authentication-failed  ciphertext-truncated
//   key-unwrap-failed  release-secret-wrong  metadata-authentication-failed  metadata-invalid  path-refused
//   value-error
//
// and, where that section has no word: chunk-size-wrong, digests-invalid, digest-mismatch, root-mismatch,
// link-invalid, text-too-long, parcel-mismatch. Messages are for developers and hold no secret; pages choose words by
// `kind`.

export class FormatError extends Error {
  constructor(kind, message, { chunkIndex, path } = {}) {
    super(message);
    this.name = 'FormatError';
    this.kind = kind;
    this.chunkIndex = chunkIndex;
    this.path = path;
  }
}
