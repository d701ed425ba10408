// What a parcel says about itself, sealed so that only who holds the link reads it (docs/FORMAT.md, section 8).
//
//   sealed = nonce[12] || AES-256-GCM(metadata_key, nonce, document, aad = "bitcache/v1/metadata")
//
// Here a document is {title, note, preview: {mediaType, image} | null, files: [{path, mediaType, sizeBytes,
// modifiedAt, header, root}], releaseCommitment, keyCheck}, with bytes as Uint8Array. Nothing of one is handed out
// before all of it is checked: a seller may be hostile to the buyer's screen, disk and memory.

import { decode, encode } from './base64url.js';
import { joined, utf8 } from './bytes.js';
import { HEADER_BYTES, PLAINTEXT_BYTES_MAX, TAG_BYTES } from './content.js';
import { DIGEST_BYTES } from './digests.js';
import { FormatError } from './errors.js';
import { NONCE_BYTES, SECRET_BYTES } from './keys.js';
import { checkPaths } from './paths.js';

export const TITLE_BYTES_MAX = 512;
export const NOTE_BYTES_MAX = 16 << 10;
export const PREVIEW_BYTES_MAX = 256 << 10;
export const FILES_MAX = 10_000;

const VERSION = 1;
const SEALED_BYTES_MAX = 4 << 20;
// Unix seconds of the years 1 to 9999.
const MODIFIED_AT_MIN = -62_135_596_800;
export const MODIFIED_AT_MAX = 253_402_300_799;
const METADATA_INFO = utf8('bitcache/v1/metadata');
export const MEDIA_TYPE = /^[a-z0-9][a-z0-9!#$&^_.+-]{0,62}\/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}$/;
// The last ones reorder the text around them.
export const REFUSED_IN_TEXT = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/u;

// Throws FormatError 'metadata-invalid', 'path-refused', 'secret-size-wrong'.
export async function sealMetadata(metadataKey, document) {
  check(document);
  const nonce = crypto.getRandomValues(new Uint8Array(NONCE_BYTES));
  const key = await importKey(metadataKey, 'encrypt');
  const text = utf8(documentText(document));
  const sealed = joined(nonce, new Uint8Array(await crypto.subtle.encrypt(algorithm(nonce), key, text)));
  if (sealed.length > SEALED_BYTES_MAX) throw invalid('it is larger than 4 MiB');
  return sealed;
}

// Throws FormatError 'metadata-authentication-failed', 'metadata-invalid', 'path-refused', 'secret-size-wrong'.
export async function openMetadata(metadataKey, sealed) {
  if (sealed.length > SEALED_BYTES_MAX) throw invalid('it is larger than 4 MiB');
  if (sealed.length < NONCE_BYTES + TAG_BYTES) throw unauthenticated();
  const key = await importKey(metadataKey, 'decrypt');
  let octets;
  try {
    const nonce = sealed.slice(0, NONCE_BYTES);
    octets = await crypto.subtle.decrypt(algorithm(nonce), key, sealed.subarray(NONCE_BYTES));
  } catch (failure) {
    if (failure.name !== 'OperationError') throw failure;
    throw unauthenticated();
  }
  const document = fromWire(parsed(octets));
  check(document);
  return document;
}

// The JSON of a document: members sorted at every level, no spaces, so that one description is always one text.
export function documentText({ title, note, preview, files, releaseCommitment, keyCheck }) {
  return JSON.stringify({
    files: files.map((file) => ({
      header: encode(file.header),
      media_type: file.mediaType,
      modified_at: file.modifiedAt,
      path: file.path,
      root: encode(file.root),
      size_bytes: file.sizeBytes,
    })),
    key_check: encode(keyCheck),
    note,
    preview: preview && { image: encode(preview.image), media_type: preview.mediaType },
    release_commitment: encode(releaseCommitment),
    title,
    version: VERSION,
  });
}

// What the first bytes of a picture say it is, or null where it cannot be a preview.
function previewMediaType(image) {
  const begins = String.fromCharCode(...image.subarray(0, 12));
  if (begins.startsWith('\x89PNG\r\n\x1a\n')) return 'image/png';
  if (begins.startsWith('\xff\xd8\xff')) return 'image/jpeg';
  if (begins.startsWith('RIFF') && begins.slice(8) === 'WEBP') return 'image/webp';
  return null;
}

const algorithm = (iv) => ({ name: 'AES-GCM', iv, additionalData: METADATA_INFO });

function importKey(metadataKey, use) {
  if (metadataKey.length !== SECRET_BYTES) throw new FormatError('secret-size-wrong', 'a metadata key has 32 bytes');
  return crypto.subtle.importKey('raw', metadataKey, 'AES-GCM', false, [use]);
}

// From the JSON to a document. Of types only those are looked at that stand in the way; `check` looks at all others.

function parsed(octets) {
  try {
    // A byte order mark is kept, and then is no JSON.
    return JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(octets));
  } catch {
    throw invalid('it is not JSON');
  }
}

function fromWire(wire) {
  if (wire?.version !== VERSION) throw invalid(`version is not ${VERSION}`);
  if (!Array.isArray(wire.files)) throw invalid('files is not an array');
  return {
    title: wire.title,
    note: wire.note,
    preview: wire.preview === null ? null : previewFromWire(wire.preview),
    files: wire.files.map(fileFromWire),
    releaseCommitment: binary('release_commitment', wire.release_commitment),
    keyCheck: binary('key_check', wire.key_check),
  };
}

const previewFromWire = (wire) => ({ mediaType: wire?.media_type, image: binary('preview', wire?.image) });

const fileFromWire = (wire) => ({
  path: wire?.path,
  mediaType: wire?.media_type,
  sizeBytes: wire?.size_bytes,
  modifiedAt: wire?.modified_at,
  header: binary('header', wire?.header),
  root: binary('root', wire?.root),
});

function binary(name, text) {
  try {
    return decode(text);
  } catch {
    throw invalid(`${name} is not base64url`);
  }
}

// Every rule of section 8

function check({ title, note, preview, files, releaseCommitment, keyCheck }) {
  checkText('title', title, TITLE_BYTES_MAX);
  checkText('note', note, NOTE_BYTES_MAX, /[\n\t]/g);
  if (preview !== null) checkPreview(preview);
  checkLength('release_commitment', releaseCommitment, DIGEST_BYTES);
  checkLength('key_check', keyCheck, SECRET_BYTES);
  if (files.length < 1 || files.length > FILES_MAX) throw invalid(`${files.length} files`);
  files.forEach(checkFile);
  const normal = checkPaths(files.map((file) => file.path));
  const other = files.find((file, at) => file.path !== normal[at]);
  if (other) throw new FormatError('path-refused', 'it is not in normalization form C', { path: other.path });
}

function checkFile({ path, mediaType, sizeBytes, modifiedAt, header, root }) {
  if (typeof path !== 'string') throw invalid('path is not a string');
  if (typeof mediaType !== 'string' || !MEDIA_TYPE.test(mediaType)) throw invalid('media_type is not type/subtype');
  checkInteger('size_bytes', sizeBytes, 0, PLAINTEXT_BYTES_MAX);
  checkInteger('modified_at', modifiedAt, MODIFIED_AT_MIN, MODIFIED_AT_MAX);
  checkLength('header', header, HEADER_BYTES);
  if (header[0] !== HEADER_BYTES) throw invalid('header does not begin with 0x28');
  checkLength('root', root, DIGEST_BYTES);
}

function checkPreview({ mediaType, image }) {
  if (image.length > PREVIEW_BYTES_MAX) throw invalid('preview is larger than 256 KiB');
  if (typeof mediaType !== 'string' || mediaType !== previewMediaType(image)) {
    throw invalid('preview is not what its media_type says');
  }
}

function checkText(name, text, bytesMax, allowed = '') {
  if (typeof text !== 'string') throw invalid(`${name} is not a string`);
  if (REFUSED_IN_TEXT.test(text.replace(allowed, ''))) throw invalid(`${name} contains a control character`);
  if (utf8(text).length > bytesMax) throw invalid(`${name} is longer than ${bytesMax} bytes`);
}

// 1.0 is an integer to JSON and to us.
function checkInteger(name, value, least, most) {
  if (!Number.isInteger(value) || value < least || value > most) throw invalid(`${name} is not ${least} to ${most}`);
}

function checkLength(name, bytes, length) {
  if (bytes.length !== length) throw invalid(`${name} has ${bytes.length} bytes instead of ${length}`);
}

const invalid = (reason) => new FormatError('metadata-invalid', reason);

const unauthenticated = () => new FormatError('metadata-authentication-failed', 'the link does not open it');
