// Bytes as text in metadata, links and receipts: base64url without padding, canonical only (docs/FORMAT.md, section 2).

import { FormatError } from './errors.js';

const ALPHABET = /^[A-Za-z0-9_-]*$/;
// Arguments of one call are limited to some ten thousands.
const PIECE_BYTES = 0x2000;

export function encode(bytes) {
  let binary = '';
  for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
    binary += String.fromCharCode(...bytes.subarray(at, at + PIECE_BYTES));
  }
  return btoa(binary).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

// Throws FormatError 'value-error' for anything `encode` never gives: one secret has one text.
export function decode(text) {
  if (typeof text !== 'string' || !ALPHABET.test(text) || text.length % 4 === 1) {
    throw new FormatError('value-error', 'not base64url');
  }
  const binary = atob(text.replaceAll('-', '+').replaceAll('_', '/'));
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = binary.charCodeAt(at);
  // Only the last group of four can be incomplete, and atob ignores bits left over at its end.
  const complete = text.length - (text.length % 4);
  if (encode(bytes.subarray((complete / 4) * 3)) !== text.slice(complete)) {
    throw new FormatError('value-error', 'base64url with loose bits at its end');
  }
  return bytes;
}
