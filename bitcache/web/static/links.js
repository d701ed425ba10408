// Links and receipts (docs/FORMAT.md, section 10): where the parcel is, before the `#`; the secrets that never reach
// the server, after it.
//
//   link     {public_url}/d/{offer_id}#1.{link_secret}
//   receipt  {public_url}/r/{invoice_id}#1.{claim_secret}.{link_secret}

import { decode, encode } from './base64url.js';
import { FormatError } from './errors.js';
import { SECRET_BYTES } from './keys.js';

const VERSION = '1';
const LENGTH_MAX = 4096;
// Neither user information, which makes one host look like another, nor a backslash, which browsers take for a slash.
const PUBLIC_URL = /^https?:\/\/[^/@]+(\/[^]*)?$/i;
const PRINTABLE = /^[!-~]+$/;
const LOCATION = /^(.*)\/([dr])\/([a-z2-7]{26})$/;

// {publicUrl, offerId, linkSecret}. Throws FormatError 'link-invalid'; its message never holds a secret.
export function parseLink(url) {
  const { publicUrl, id, secrets } = parse(url, 'd', 1);
  return { publicUrl, offerId: id, linkSecret: secrets[0] };
}

// {publicUrl, invoiceId, claimSecret, linkSecret}. Throws as `parseLink`.
export function parseReceipt(url) {
  const { publicUrl, id, secrets } = parse(url, 'r', 2);
  return { publicUrl, invoiceId: id, claimSecret: secrets[0], linkSecret: secrets[1] };
}

export const linkUrl = (publicUrl, offerId, linkSecret) => `${publicUrl}/d/${offerId}#${fragment(linkSecret)}`;

export const receiptUrl = (publicUrl, invoiceId, claimSecret, linkSecret) =>
  `${publicUrl}/r/${invoiceId}#${fragment(claimSecret, linkSecret)}`;

const fragment = (...secrets) => [VERSION, ...secrets.map(encode)].join('.');

function parse(url, kind, count) {
  const text = url.trim();
  const hash = text.indexOf('#');
  if (hash < 0 || text.length > LENGTH_MAX) throw invalid('not a link of ours');
  // Mail and chat programs add queries of their own to what is sent through them.
  const [, base, found, id] = LOCATION.exec(text.slice(0, hash).replace(/\?.*$/, '')) ?? [];
  if (found !== kind) throw invalid('not the address of an offer or a payment');
  const publicUrl = checkPublicUrl(base);
  const [version, ...secrets] = text.slice(hash + 1).split('.');
  if (version !== VERSION) throw invalid('of another version');
  if (secrets.length !== count) throw invalid('not the right number of secrets');
  return { publicUrl, id, secrets: secrets.map(decodeSecret) };
}

function checkPublicUrl(base) {
  const url = base.replace(/\/+$/, '');
  if (!PUBLIC_URL.test(url) || !PRINTABLE.test(url) || url.includes('\\') || !parses(url)) {
    throw invalid('not the address of a server');
  }
  return url;
}

function parses(url) {
  try {
    return Boolean(new URL(url));
  } catch {
    return false;
  }
}

function decodeSecret(text) {
  let secret;
  try {
    secret = decode(text);
  } catch {
    throw invalid('a secret is damaged');
  }
  if (secret.length !== SECRET_BYTES) throw invalid('a secret has another length');
  return secret;
}

const invalid = (message) => new FormatError('link-invalid', message);
