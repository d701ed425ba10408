// One part of a file, 8 chunks: sealed for sending, and sent.
//
// Sent with XMLHttpRequest, as fetch does not tell how much of a body is on its way: on a slow line a part takes
// minutes. As a Blob, since a bare array is several times slower in Chromium.

import { encode } from './base64url.js';
import { ApiProblem, problemOf } from './api.js';
import { PART_BYTES, PART_CHUNKS, chunkCount, chunkPlaintext, ciphertextSize } from './content.js';
import { DIGEST_BYTES, chunkDigest } from './digests.js';

// No byte on its way for so long: the connection is dead.
const SILENCE_MS = 60_000;

// The file cannot be read any more: changed, moved or deleted since it was chosen.
export class SourceUnreadable extends Error {
  constructor(path) {
    super('the file changed or went away');
    this.path = path;
  }
}

export const partCount = (sizeBytes) => Math.ceil(chunkCount(sizeBytes) / PART_CHUNKS);

export const partSize = (sizeBytes, partNo) => Math.min(PART_BYTES, ciphertextSize(sizeBytes) - partNo * PART_BYTES);

// {body: Blob, digests}. `cipher` is the file's, `source` its File. Throws SourceUnreadable.
export async function sealPart(cipher, file, source, partNo) {
  const lastIndex = chunkCount(file.sizeBytes) - 1;
  const first = partNo * PART_CHUNKS;
  const spans = [];
  for (let index = first; index <= Math.min(first + PART_CHUNKS - 1, lastIndex); index += 1) {
    spans.push({ index, ...chunkPlaintext(index, file.sizeBytes) });
  }
  const from = spans[0].start;
  const plaintext = await read(source, file.path, from, spans.at(-1).end);
  const digests = new Uint8Array(spans.length * DIGEST_BYTES);
  const chunks = await Promise.all(
    spans.map(async ({ index, start, end }, place) => {
      const chunk = await cipher.seal(index, index === lastIndex, plaintext.subarray(start - from, end - from));
      digests.set(await chunkDigest(chunk), place * DIGEST_BYTES);
      return chunk;
    }),
  );
  return { body: new Blob(chunks), digests };
}

async function read(source, path, start, end) {
  let bytes;
  try {
    bytes = new Uint8Array(await source.slice(start, end).arrayBuffer());
  } catch {
    // Browsers look at size and time of the file and refuse one that is not what was chosen.
    throw new SourceUnreadable(path);
  }
  if (bytes.length !== end - start) throw new SourceUnreadable(path);
  return bytes;
}

// Resolves when the server has it on disk. `onSent(bytes)` tells how much is on its way. Throws ApiProblem.
export function putPart(fileId, partNo, part, { token, signal, onSent }) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const request = new XMLHttpRequest();
    request.open('PUT', `/api/v1/files/${fileId}/parts/${partNo}`);
    request.setRequestHeader('Authorization', `Bearer ${token}`);
    request.setRequestHeader('Bitcache-Chunk-Digests', encode(part.digests));
    request.setRequestHeader('Content-Type', 'application/octet-stream');

    let silence;
    const watch = () => {
      clearTimeout(silence);
      silence = setTimeout(() => request.abort(), SILENCE_MS);
    };
    const stop = () => request.abort();
    signal.addEventListener('abort', stop);
    request.upload.onprogress = ({ loaded }) => {
      watch();
      onSent(loaded);
    };
    request.onload = async () => {
      if (request.status === 204) resolve();
      else reject(await problemOf(answerOf(request)));
    };
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(signal.aborted ? signal.reason : unreachable());
    request.onloadend = () => {
      clearTimeout(silence);
      signal.removeEventListener('abort', stop);
    };
    watch();
    request.send(part.body);
  });
}

const unreachable = () => new ApiProblem({ status: 0, name: 'unreachable', detail: 'The connection broke.' });

// As fetch would give it.
function answerOf(request) {
  const retryAfter = request.getResponseHeader('Retry-After');
  const headers = retryAfter === null ? {} : { 'Retry-After': retryAfter };
  return new Response(request.responseText, { status: request.status, headers });
}
