// Keys of a parcel (docs/FORMAT.md, sections 3 and 7). The link secret never reaches the server; the server gives the
// release secret out once the parcel is paid; both together unwrap the file keys. All are 32 bytes.

import { joined, sameBytes, utf8 } from './bytes.js';
import { TAG_BYTES, checkHeader } from './content.js';
import { FormatError } from './errors.js';

export const SECRET_BYTES = 32;
export const NONCE_BYTES = 12;

const PARCEL_KEY_INFO = utf8('bitcache/v1/parcel-key');
const METADATA_INFO = utf8('bitcache/v1/metadata');
const KEY_CHECK_INFO = utf8('bitcache/v1/key-check');
const RELEASE_PREFIX = utf8('bitcache/v1/release');
const FILE_KEY_PREFIX = utf8('bitcache/v1/file-key');
const WRAPPED_BYTES = NONCE_BYTES + SECRET_BYTES + TAG_BYTES;

// A file key, a link secret, a release secret or a claim secret.
export const newSecret = () => crypto.getRandomValues(new Uint8Array(SECRET_BYTES));

// All below throw FormatError 'secret-size-wrong' for a secret or key that is not 32 bytes.

export async function parcelKey(linkSecret, releaseSecret) {
  checkSecret('link secret', linkSecret);
  checkSecret('release secret', releaseSecret);
  return hkdf(joined(linkSecret, releaseSecret), PARCEL_KEY_INFO);
}

export async function metadataKey(linkSecret) {
  checkSecret('link secret', linkSecret);
  return hkdf(linkSecret, METADATA_INFO);
}

// By this whoever has both halves sees that they belong together.
export async function keyCheck(parcelKey) {
  checkSecret('parcel key', parcelKey);
  return hkdf(parcelKey, KEY_CHECK_INFO);
}

// By this the metadata pins the release secret without telling it.
export async function releaseCommitment(releaseSecret) {
  checkSecret('release secret', releaseSecret);
  return sha256(joined(RELEASE_PREFIX, releaseSecret));
}

export async function claimHash(claimSecret) {
  checkSecret('claim secret', claimSecret);
  return sha256(claimSecret);
}

// The parcel key, once commitment and key check of the metadata prove the release secret right: the server may have
// given out any. Throws FormatError 'release-secret-wrong'.
export async function provenParcelKey(linkSecret, releaseSecret, expected) {
  if (!sameBytes(await releaseCommitment(releaseSecret), expected.releaseCommitment)) {
    throw new FormatError('release-secret-wrong', 'the seller did not commit to this release secret');
  }
  const key = await parcelKey(linkSecret, releaseSecret);
  if (!sameBytes(await keyCheck(key), expected.keyCheck)) {
    throw new FormatError('release-secret-wrong', 'the release secret does not go with this link');
  }
  return key;
}

// 60 bytes: nonce, sealed file key, tag. Bound to the header, so that it opens for its own file only.
// Throws FormatError 'header-invalid'.
export async function wrapFileKey(parcelKey, fileKey, header) {
  checkSecret('file key', fileKey);
  const nonce = crypto.getRandomValues(new Uint8Array(NONCE_BYTES));
  const { key, algorithm } = await wrapping(parcelKey, nonce, header, 'encrypt');
  return joined(nonce, new Uint8Array(await crypto.subtle.encrypt(algorithm, key, fileKey)));
}

// Throws FormatError 'header-invalid', 'key-unwrap-failed'.
export async function unwrapFileKey(parcelKey, wrapped, header) {
  const { key, algorithm } = await wrapping(parcelKey, wrapped.slice(0, NONCE_BYTES), header, 'decrypt');
  if (wrapped.length !== WRAPPED_BYTES) {
    throw new FormatError('key-unwrap-failed', `a wrapped key has ${WRAPPED_BYTES} bytes, not ${wrapped.length}`);
  }
  try {
    return new Uint8Array(await crypto.subtle.decrypt(algorithm, key, wrapped.subarray(NONCE_BYTES)));
  } catch (failure) {
    if (failure.name !== 'OperationError') throw failure;
    throw new FormatError('key-unwrap-failed', 'the wrapped key is altered, or of another parcel or file');
  }
}

async function wrapping(parcelKey, iv, header, use) {
  checkSecret('parcel key', parcelKey);
  checkHeader(header);
  const key = await crypto.subtle.importKey('raw', parcelKey, 'AES-GCM', false, [use]);
  return { key, algorithm: { name: 'AES-GCM', iv, additionalData: joined(FILE_KEY_PREFIX, header) } };
}

async function hkdf(secret, info) {
  const key = await crypto.subtle.importKey('raw', secret, 'HKDF', false, ['deriveBits']);
  const algorithm = { name: 'HKDF', hash: 'SHA-256', salt: new Uint8Array(), info };
  return new Uint8Array(await crypto.subtle.deriveBits(algorithm, key, SECRET_BYTES * 8));
}

const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));

function checkSecret(name, secret) {
  if (secret.length !== SECRET_BYTES) {
    throw new FormatError('secret-size-wrong', `the ${name} has ${secret.length} bytes instead of ${SECRET_BYTES}`);
  }
}
