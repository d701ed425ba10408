// The short-lived token with which a page's scripts call the API for the seller who is signed in on this browser.
//
// The session's cookie is out of reach of scripts; POST /session/token, sent with the page's form token, gives a
// token that dies by itself. It lives in memory only.

import { ApiProblem, problemOf, reached } from './api.js';
import { fetchDocument } from './trusted.js';

// Renewed this long before it ends: a large part may be a while on its way.
const RENEWED_BEFORE_S = 120;

let kept = null; // {token, expires_at}
let asking = null;

// A token that lives for a while yet; with `fresh` a new one, after the API refused the last. Throws ApiProblem: 401
// when nobody is signed in, `unreachable` without a network.
export async function sellerToken({ fresh = false } = {}) {
  if (fresh) kept = null;
  if (kept && kept.expires_at - Date.now() / 1000 > RENEWED_BEFORE_S) return kept.token;
  // Several lanes ask at once: one question is enough.
  asking ??= renewed().finally(() => {
    asking = null;
  });
  kept = await asking;
  return kept.token;
}

async function renewed() {
  try {
    return await asked();
  } catch (problem) {
    // A form token ends before a very long upload does. A page read anew has a new one.
    if (!(problem instanceof ApiProblem && problem.status === 403)) throw problem;
    await readPageAnew();
    return asked();
  }
}

async function asked() {
  const answer = await reached(null, () =>
    fetch('/session/token', {
      method: 'POST',
      headers: { 'Bitcache-Form-Token': document.body.dataset.formToken },
      cache: 'no-store',
      credentials: 'same-origin',
      redirect: 'error',
    }),
  );
  if (!answer.ok) throw await problemOf(answer);
  return answer.json();
}

async function readPageAnew() {
  const page = await reached(null, () => fetchDocument(location.pathname));
  const formToken = page.body.dataset.formToken;
  // Without one it is the sign-in page. Somebody else who signed in meanwhile is not paid for this one's files.
  if (!formToken || accountOf(page) !== accountOf(document)) {
    throw new ApiProblem({ status: 401, name: 'token-missing', detail: 'You are signed out.' });
  }
  document.body.dataset.formToken = formToken;
}

const accountOf = (page) => page.getElementById('upload')?.dataset.accountId;
