// What a buyer saves, as a stream: one file, or a ZIP of several; fetched, checked and decrypted as it is read.
//
//   job = {offerId, invoiceId, claimSecret, files: [{fileId, path, sizeBytes, modifiedAt, header, root, fileKey}],
//          zipName: string | null}
//
// No byte of a chunk comes out before its digest and its tag are verified (docs/FORMAT.md, section 11, steps 3 to 7).
// Memory holds a few chunks, however large the files are. Knows no page: workers run it.

import { Ciphertext } from './ciphertext.js';
import { CHUNK_BYTES, ContentCipher, ciphertextSize } from './content.js';
import { Grant } from './grant.js';
import { forgetKept, keptCiphertext } from './kept-ciphertext.js';
import { SaveError } from './errand.js';
import { release } from './release.js';
import { planZip, zipPieces } from './zip.js';

// Chunks that are verified and decrypted while the next one is read.
const OPENING_MAX = 2;
// Small files fetched while another one is read: with that one, fewer connections than a grant may have.
const FILES_AHEAD = 2;
const NAME_LENGTH_MAX = 120;
const QUEUED_MAX = 2;
// Of a stream: those in its queue, the one its reader is at, and one to be sure.
const PIECES_IN_USE = QUEUED_MAX + 2;

// {name, lengthBytes, pieces}. `options`: {signal, onWaiting, stallMs}.
//
// The pieces throw FormatError, ApiProblem, or the signal's reason, with the `path` of the file where there is one.
export function openDownload(job, options = {}) {
  const grant = new Grant(job);
  const files = job.files.map((file) => ({ ...file, ciphertextBytes: ciphertextSize(file.sizeBytes) }));
  const open = (file) => plainPieces(job, file, grant, options);
  if (job.zipName === null) {
    if (files.length !== 1) throw new TypeError('several files need the name of their archive');
    const [file] = files;
    return { name: file.path.split('/').at(-1), lengthBytes: file.sizeBytes, pieces: open(file) };
  }
  const plan = planZip(files);
  const pieces = zipPieces(plan, smallFilesAhead(files, open));
  return { name: fileName(job.zipName), lengthBytes: plan.lengthBytes, pieces };
}

// A title may hold anything of one line; a path's parts were checked.
const fileName = (text) => text.replace(/[\\/:*?"<>|\p{C}]/gu, '_').slice(-NAME_LENGTH_MAX);

// Removes what was fetched ahead for the files of a job that is saved.
export const forgetSaved = (job) =>
  forgetKept(
    job.invoiceId,
    job.files.map((file) => file.fileId),
  );

// {stream, finished}: `pieces` as a stream that asks for them as it is read. `finished` resolves when it was read to
// its end, and rejects with what broke it; 'cancelled' when its reader wanted no more.
export function streamOf(pieces) {
  let stream;
  const finished = new Promise((resolve, reject) => {
    const given = [];
    const pull = async (controller) => {
      try {
        if (given.length > PIECES_IN_USE) release(given.shift());
        const { value, done } = await pieces.next();
        if (!done) {
          given.push(value);
          return controller.enqueue(value);
        }
        controller.close();
        return resolve();
      } catch (error) {
        reject(error);
        throw error;
      }
    };
    const cancel = () => {
      reject(new SaveError('cancelled', 'the browser was told to stop'));
      // Waits for the piece under way: whoever hears of the end aborts that.
      pieces.return().catch(() => {});
    };
    stream = new ReadableStream({ pull, cancel }, { highWaterMark: QUEUED_MAX });
  });
  return { stream, finished };
}

// The same pieces, once the first two are there, of an archive the first of its content: what cannot be opened fails
// before anything is made of it.
export async function begun(pieces) {
  const first = [await pieces.next(), await pieces.next()];
  return (async function* again() {
    try {
      for (const { value, done } of first) if (!done) yield value;
      yield* pieces;
    } finally {
      await pieces.return();
    }
  })();
}

async function* plainPieces(job, file, grant, options) {
  const ciphertext = new Ciphertext(job.offerId, file, grant, {
    ...options,
    kept: await keptCiphertext(job.invoiceId, file),
  });
  const opening = [];
  try {
    const cipher = await ContentCipher.create(file.fileKey, file.header);
    for (let index = 0; index < ciphertext.chunks; index += 1) {
      opening.push(plaintextOf(ciphertext, cipher, index, await ciphertext.read(index)));
      // Awaited in its turn; until then its failure is nobody's.
      opening.at(-1).catch(() => {});
      if (opening.length > OPENING_MAX) yield await opening.shift();
    }
    while (opening.length) yield await opening.shift();
  } catch (error) {
    if (error instanceof Error && !options.signal?.aborted) error.path = file.path;
    throw error;
  } finally {
    ciphertext.close();
  }
}

// Verifies and decrypts at the same time; the one counts only with the other.
async function plaintextOf(ciphertext, cipher, index, chunk) {
  const last = index === ciphertext.chunks - 1;
  const plaintext = cipher.open(index, last, chunk);
  plaintext.catch(() => {});
  const good = await ciphertext.checked(index, chunk);
  const opened = good === chunk ? await plaintext : await cipher.open(index, last, good);
  ciphertext.done(chunk);
  return opened;
}

// `open` by place, with the small ones behind it already on their way: else each would cost a round trip of waiting.
function smallFilesAhead(files, open) {
  const started = new Map();
  const start = (place) => {
    if (started.has(place) || !(files[place]?.ciphertextBytes <= CHUNK_BYTES)) return;
    const whole = collected(open(files[place]));
    whole.catch(() => {});
    started.set(place, whole);
  };
  return async function* pieces(place) {
    for (let ahead = 1; ahead <= FILES_AHEAD; ahead += 1) start(place + ahead);
    if (!started.has(place)) {
      yield* open(files[place]);
      return;
    }
    yield* await started.get(place);
    started.delete(place);
  };
}

async function collected(pieces) {
  const all = [];
  for await (const piece of pieces) all.push(piece);
  return all;
}
