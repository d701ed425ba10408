// Files as encrypted chunks (docs/FORMAT.md, sections 4 and 5): Tink's AES256_GCM_HKDF_1MB without key prefix.
//
//   header  = 0x28 || salt[32] || nonce_prefix[7]
//   segment = AES-256-GCM(key, nonce_prefix || uint32_be(i) || last, plaintext_i)
//   chunk 0 = header || segment 0;  chunk i = segment i, bytes i MiB to (i + 1) MiB of the ciphertext
//
// A file key and header must never seal two different plaintexts under one index: that uses a GCM nonce twice and
// gives both away. Whoever resumes an upload compares digests before sending (section 12).

import { sameBytes, utf8 } from './bytes.js';
import { FormatError } from './errors.js';

export const CHUNK_BYTES = 1 << 20;
export const HEADER_BYTES = 40;
export const TAG_BYTES = 16;
export const PART_CHUNKS = 8;
export const PART_BYTES = PART_CHUNKS * CHUNK_BYTES;
// The index is four bytes of the nonce: a larger file would use a nonce twice.
export const CHUNK_COUNT_MAX = 2 ** 32;

const SALT_BYTES = 32;
const FILE_KEY_BYTES = 32;
const NONCE_BYTES = 12;
const CONTENT_INFO = utf8('bitcache/v1/content');
// What every chunk but the first holds.
const CHUNK_PLAINTEXT_BYTES = CHUNK_BYTES - TAG_BYTES;
export const PLAINTEXT_BYTES_MAX = CHUNK_COUNT_MAX * CHUNK_PLAINTEXT_BYTES - HEADER_BYTES;

// Sizes and places. All throw FormatError 'size-impossible'; all are exact below 2^53.

export function chunkCount(plaintextBytes) {
  if (!Number.isSafeInteger(plaintextBytes) || plaintextBytes < 0 || plaintextBytes > PLAINTEXT_BYTES_MAX) {
    throw new FormatError('size-impossible', `no file has ${plaintextBytes} bytes`);
  }
  return Math.max(1, Math.ceil((plaintextBytes + HEADER_BYTES) / CHUNK_PLAINTEXT_BYTES));
}

export function ciphertextSize(plaintextBytes) {
  return HEADER_BYTES + chunkCount(plaintextBytes) * TAG_BYTES + plaintextBytes;
}

export function plaintextSize(ciphertextBytes) {
  const chunks = Math.ceil(ciphertextBytes / CHUNK_BYTES);
  const lastBytes = ciphertextBytes - (chunks - 1) * CHUNK_BYTES;
  const within =
    Number.isSafeInteger(ciphertextBytes) &&
    ciphertextBytes >= HEADER_BYTES + TAG_BYTES &&
    ciphertextBytes <= CHUNK_COUNT_MAX * CHUNK_BYTES;
  // Only an empty file has a chunk without plaintext.
  if (!within || (chunks > 1 && lastBytes <= TAG_BYTES)) {
    throw new FormatError('size-impossible', `no ciphertext has ${ciphertextBytes} bytes`);
  }
  return ciphertextBytes - HEADER_BYTES - chunks * TAG_BYTES;
}

// Where in the plain file the content of chunk `index` is: {start, end}.
export function chunkPlaintext(index, plaintextBytes) {
  if (!(index >= 0 && index < chunkCount(plaintextBytes))) {
    throw new RangeError(`no chunk ${index} in a file of ${plaintextBytes} bytes`);
  }
  return {
    start: Math.max(0, index * CHUNK_PLAINTEXT_BYTES - HEADER_BYTES),
    end: Math.min((index + 1) * CHUNK_PLAINTEXT_BYTES - HEADER_BYTES, plaintextBytes),
  };
}

// One chunk at a time

// One per encryption of a file: never to be used again for other bytes.
export function newHeader() {
  const header = crypto.getRandomValues(new Uint8Array(HEADER_BYTES));
  header[0] = HEADER_BYTES;
  return header;
}

export function checkHeader(header) {
  if (header.length !== HEADER_BYTES || header[0] !== HEADER_BYTES) {
    throw new FormatError('header-invalid', 'not 40 bytes that begin with 0x28');
  }
}

// Seals and opens the chunks of one file, in any order and many at once.
export class ContentCipher {
  #key;

  // Throws FormatError 'secret-size-wrong', 'header-invalid'.
  static async create(fileKey, header) {
    if (fileKey.length !== FILE_KEY_BYTES) throw new FormatError('secret-size-wrong', 'a file key has 32 bytes');
    checkHeader(header);
    const secret = await crypto.subtle.importKey('raw', fileKey, 'HKDF', false, ['deriveKey']);
    const salt = header.slice(1, 1 + SALT_BYTES);
    const key = await crypto.subtle.deriveKey(
      { name: 'HKDF', hash: 'SHA-256', salt, info: CONTENT_INFO },
      secret,
      { name: 'AES-GCM', length: 256 },
      false,
      ['encrypt', 'decrypt'],
    );
    return new ContentCipher(key, header.slice());
  }

  constructor(key, header) {
    this.#key = key;
    this.header = header;
  }

  // The whole chunk, with the header for chunk 0. Throws FormatError 'chunk-size-wrong' unless `plaintext` fills the
  // chunk or, for the last one, fits it.
  async seal(index, last, plaintext) {
    checkIndex(index);
    const mostBytes = CHUNK_PLAINTEXT_BYTES - headerBytes(index);
    const leastBytes = last ? Number(index > 0) : mostBytes;
    if (plaintext.length < leastBytes || plaintext.length > mostBytes) {
      throw new FormatError('chunk-size-wrong', `${plaintext.length} bytes of plaintext`, { chunkIndex: index });
    }
    const segment = new Uint8Array(await crypto.subtle.encrypt(this.#algorithm(index, last), this.#key, plaintext));
    if (index > 0) return segment;
    const chunk = new Uint8Array(HEADER_BYTES + segment.length);
    chunk.set(this.header);
    chunk.set(segment, HEADER_BYTES);
    return chunk;
  }

  // The plaintext of a whole chunk (chunk 0 with its header). Throws FormatError 'chunk-authentication-failed',
  // 'ciphertext-truncated', 'header-invalid' (chunk 0 has another header) or 'chunk-size-wrong'.
  async open(index, last, chunk) {
    checkIndex(index);
    const segment = this.#segment(index, last, chunk);
    const plaintext = await this.#opened(index, last, segment);
    if (plaintext) return plaintext;
    // A chunk that opens only as one within the file is good: what follows it is missing.
    const cut = last && chunk.length === CHUNK_BYTES && (await this.#opened(index, false, segment));
    throw cut
      ? truncated(index)
      : new FormatError('chunk-authentication-failed', `chunk ${index} is not what was sealed`, { chunkIndex: index });
  }

  #segment(index, last, chunk) {
    if (chunk.length > CHUNK_BYTES || (!last && chunk.length < CHUNK_BYTES)) {
      throw new FormatError('chunk-size-wrong', `chunk ${index} has ${chunk.length} bytes`, { chunkIndex: index });
    }
    const start = headerBytes(index);
    if (chunk.length < start) throw truncated(index);
    if (start && !sameBytes(chunk.subarray(0, start), this.header)) {
      throw new FormatError('header-invalid', 'the file begins with another header than its key belongs to');
    }
    if (chunk.length < start + TAG_BYTES + Number(index > 0)) throw truncated(index);
    return chunk.subarray(start);
  }

  // null where the tag is not right.
  async #opened(index, last, segment) {
    try {
      return new Uint8Array(await crypto.subtle.decrypt(this.#algorithm(index, last), this.#key, segment));
    } catch (failure) {
      if (failure.name === 'OperationError') return null;
      throw failure;
    }
  }

  #algorithm(index, last) {
    const iv = new Uint8Array(NONCE_BYTES);
    iv.set(this.header.subarray(1 + SALT_BYTES));
    new DataView(iv.buffer).setUint32(HEADER_BYTES - 1 - SALT_BYTES, index);
    iv[NONCE_BYTES - 1] = Number(last);
    return { name: 'AES-GCM', iv };
  }
}

const headerBytes = (index) => (index === 0 ? HEADER_BYTES : 0);

const truncated = (chunkIndex) =>
  new FormatError('ciphertext-truncated', `the file ends in or after chunk ${chunkIndex}`, { chunkIndex });

// setUint32 would wrap silently, and use a nonce twice.
function checkIndex(index) {
  if (!Number.isInteger(index) || index < 0 || index >= CHUNK_COUNT_MAX) {
    throw new FormatError('size-impossible', `no file has a chunk ${index}`);
  }
}
