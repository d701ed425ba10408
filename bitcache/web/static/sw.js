// The service worker that saves downloads: a page gives it a job, then loads /sw-dl/{nonce} in a hidden frame, and the
// answer to that is a stream the browser saves as any download.
//
// The rule it keeps: it answers nothing else. Pages and everything on them go to the server as if it were not there,
// and it keeps nothing. A nonce works once.

// From the root: this script is served there.
import { begun, forgetSaved, openDownload, streamOf } from '/static/download.js';
import { carryOut } from '/static/errand.js';

const PLACE = '/sw-dl/';
// Given a job and never asked for it: the page is gone.
const JOBS_MAX = 16;
const jobs = new Map();

self.addEventListener('message', (event) => {
  const { type, nonce, job } = event.data;
  // Downloads of other pages may run in the version before this one: it goes when a page asks for a new download.
  if (type === 'take-over') event.waitUntil(self.skipWaiting());
  if (type !== 'save') return; // 'ping': hearing it is all, a worker that hears nothing is ended after 30 s
  const [port] = event.ports;
  jobs.set(nonce, { job, port });
  if (jobs.size > JOBS_MAX) jobs.delete(jobs.keys().next().value);
  port.postMessage({ type: 'ready' });
});

self.addEventListener('fetch', (event) => {
  const url = new URL(event.request.url);
  if (url.origin !== self.location.origin || !url.pathname.startsWith(PLACE)) return;
  const nonce = url.pathname.slice(PLACE.length);
  const given = jobs.get(nonce);
  jobs.delete(nonce);
  event.respondWith(given ? answer(given) : new Response(null, { status: 410 }));
});

function answer({ job, port }) {
  return new Promise((respond) => {
    carryOut(port, async ({ signal, onProgress, onWaiting, say }) => {
      say('started');
      try {
        const download = openDownload(job, { signal, onWaiting, ...job.tuning });
        // A wrong key or a server that refuses shows with the first piece: then there is nothing to save.
        const pieces = await begun(download.pieces);
        const { stream, finished } = streamOf(counted(pieces, onProgress));
        respond(new Response(stream, { headers: headersOf(download) }));
        await finished;
      } catch (error) {
        // The frame stays as it is. Too late, and without effect, when there was an answer already.
        respond(new Response(null, { status: 204 }));
        throw error;
      }
      await forgetSaved(job);
    });
  });
}

async function* counted(pieces, onProgress) {
  let bytes = 0;
  for await (const piece of pieces) {
    yield piece;
    bytes += piece.length;
    onProgress(bytes);
  }
}

function headersOf({ name, lengthBytes }) {
  const plain = name.replace(/[^\x20-\x7e]|["\\%]/g, '_');
  const exact = encodeURIComponent(name).replace(/['()*]/g, (mark) => `%${mark.charCodeAt(0).toString(16)}`);
  return {
    'Content-Type': 'application/octet-stream',
    'Content-Length': String(lengthBytes),
    'Content-Disposition': `attachment; filename="${plain}"; filename*=UTF-8''${exact}`,
    'Content-Security-Policy': "default-src 'none'",
    'X-Content-Type-Options': 'nosniff',
  };
}
