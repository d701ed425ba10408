// The one Trusted Types policy of all pages. Scripts come from our own folder; markup from our own server, whose
// templates escape whatever others wrote. Names and titles of sellers never pass here: they are set as text.

const SCRIPT = /^\/(sw\.js|static\/[a-z0-9-]+\.js)$/;

function ownScript(place) {
  if (!SCRIPT.test(place)) throw new TypeError(`not a script of ours: ${place}`);
  return place;
}

const policy = globalThis.trustedTypes?.createPolicy('bitcache', {
  createScriptURL: ownScript,
  createHTML: (markup) => markup,
}) ?? { createScriptURL: ownScript, createHTML: (markup) => markup };

// For `new Worker` and `serviceWorker.register`.
export const scriptUrl = (place) => policy.createScriptURL(place);

// A page of our own server, fetched from `path` of this origin, as a document. Throws when it does not answer 200.
export async function fetchDocument(path, options = {}) {
  if (!path.startsWith('/') || path.startsWith('//')) throw new TypeError(`not a page of ours: ${path}`);
  const answer = await fetch(path, { cache: 'no-store', redirect: 'error', ...options });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return new DOMParser().parseFromString(policy.createHTML(await answer.text()), 'text/html');
}
