// Runs one upload, off the page. Ends with the page, or when the page ends it: that is what pausing is.
//
// in   {kind: 'run', id, sources: [[path, File]]}; then an answer to each question, {kind: 'token', token | problem}
// out  {kind: 'ready'}; the question {kind: 'token', fresh}; the news of upload-core and upload-api; at the end
//      {kind: 'done', parcelId, offerId} or {kind: 'stopped', why: {name, status, detail, field, path}}

import { ApiProblem } from './api.js';
import { FormatError } from './errors.js';
import { UploadApi } from './upload-api.js';
import { SourceChanging, Upload } from './upload-core.js';
import { SourceUnreadable } from './upload-part.js';
import { openStore } from './upload-store.js';

// A tab that was just closed, or a worker that was just ended, lets go a moment later.
const LOCK_WAIT_MS = 3_000;

const waitingForToken = [];
const tell = (news) => postMessage(news);

addEventListener('message', ({ data }) => {
  if (data.kind === 'run') run(data);
  if (data.kind === 'token') {
    const { resolve, reject } = waitingForToken.shift();
    if (data.problem) reject(new ApiProblem(data.problem));
    else resolve(data.token);
  }
});

function token({ fresh }) {
  return new Promise((resolve, reject) => {
    waitingForToken.push({ resolve, reject });
    tell({ kind: 'token', fresh });
  });
}

async function run({ id, sources }) {
  try {
    const wait = { signal: AbortSignal.timeout(LOCK_WAIT_MS) };
    const done = await navigator.locks.request(`bitcache-upload-${id}`, wait, () => uploaded(id, new Map(sources)));
    tell({ kind: 'done', ...done });
  } catch (failure) {
    tell({ kind: 'stopped', why: whyOf(failure) });
  }
}

async function uploaded(id, sources) {
  const store = await openStore();
  const parcel = await store.parcel(id);
  return new Upload({ store, api: new UploadApi({ token, tell }), parcel, sources, tell }).run();
}

// An Error does not pass to the page whole.
function whyOf(failure) {
  const { message: detail, path = null } = failure;
  if (failure instanceof ApiProblem) {
    return { name: failure.name, status: failure.status, detail: failure.detail, field: failure.field, path };
  }
  if (failure instanceof SourceUnreadable) return { name: 'source-unreadable', detail, path };
  if (failure instanceof SourceChanging) return { name: 'source-changing', detail, path };
  if (failure instanceof FormatError) return { name: failure.kind, detail, path };
  if (failure.name === 'TimeoutError') return { name: 'elsewhere', detail, path };
  return { name: 'other', detail, path };
}

tell({ kind: 'ready' });
