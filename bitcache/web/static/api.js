// Calls to this server's /api/v1, and when to repeat one. Knows no page: workers use it too.
//
// The rule it keeps: whatever goes wrong comes as an ApiProblem, whose `name` programs decide by and whose `detail`
// people read (as text, never as markup). Redirects are refused, and a token goes in a header only.

const JSON_TIMEOUT_MS = 60_000;
// A part of an upload may take as long as the server waits for it.
const OCTETS_TIMEOUT_MS = 300_000;
const REPEATABLE = new Set([0, 408, 429, 502, 503, 504, 507]);
const ATTEMPTS_MAX = 9;
const FIRST_PAUSE_MS = 250;
const PAUSE_MS_MAX = 30_000;
// Told to come back later than this, a person has to be told instead.
const RETRY_AFTER_S_MAX = 120;
const OFFLINE_LOOK_MS = 5_000;

// `status` 0 with the name `unreachable`: no answer at all. `answer-wrong`: an answer that is not this server's.
export class ApiProblem extends Error {
  // `work`: what has to be solved first, where the server asks for a proof of work.
  constructor({ status, name, detail = '', field = null, retryAfterS = null, work = null }) {
    super(`${status} ${name}: ${detail}`);
    Object.assign(this, { status, name, detail, field, retryAfterS, work });
  }

  // As FormatError has it: what went wrong, in one word.
  get kind() {
    return this.name;
  }
}

// The parsed answer, or null where there is none; with `octets`, the Response itself, unread.
//
// `body`: an object goes as JSON; a Blob or bytes as they are. `path` is below /api/v1.
export async function call(method, path, { body, token, headers = {}, signal, octets = false, timeoutMs } = {}) {
  const raw = body instanceof Blob || body instanceof ArrayBuffer || ArrayBuffer.isView(body);
  const sent = { ...headers };
  if (token) sent.Authorization = `Bearer ${token}`;
  if (body !== undefined && !raw) sent['Content-Type'] = 'application/json';
  const answer = await reached(signal, () => {
    const limit = AbortSignal.timeout(timeoutMs ?? (raw ? OCTETS_TIMEOUT_MS : JSON_TIMEOUT_MS));
    return fetch(`/api/v1${path}`, {
      method,
      headers: sent,
      // Chromium sends a Blob several times faster than a bare array.
      body: raw && !(body instanceof Blob) ? new Blob([body]) : raw ? body : JSON.stringify(body),
      // A Response that is handed out is read for as long as its reader likes.
      signal: octets ? signal : signal ? AbortSignal.any([signal, limit]) : limit,
      cache: 'no-store',
      credentials: 'omit',
      redirect: 'error',
    });
  });
  if (!answer.ok) throw await problemOf(answer);
  if (octets) return answer;
  const text = await reached(signal, () => answer.text());
  if (text === '') return null;
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiProblem({ status: answer.status, name: 'answer-wrong', detail: 'The answer is no JSON.' });
  }
}

// What an answer of 400 and above says.
export async function problemOf(answer) {
  let problem = null;
  try {
    problem = JSON.parse(await answer.text());
  } catch {
    // Not our server's words: a proxy's page, or cut off.
  }
  const name = /^\/problems\/([a-z0-9-]+)$/.exec(problem?.type)?.[1] ?? 'answer-wrong';
  const seconds = Number(answer.headers.get('Retry-After') ?? problem?.retry_after_s ?? NaN);
  return new ApiProblem({
    status: answer.status,
    name,
    detail: typeof problem?.detail === 'string' ? problem.detail : '',
    field: typeof problem?.field === 'string' ? problem.field : null,
    retryAfterS: Number.isFinite(seconds) && seconds >= 0 ? seconds : null,
    work: typeof problem?.work?.challenge === 'string' ? problem.work : null,
  });
}

// `attempt()` with whatever breaks a connection told as ApiProblem `unreachable`, and the caller's own abort as it is.
export async function reached(signal, attempt) {
  try {
    return await attempt();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    // What fetch and its streams throw; the rest is somebody else's.
    if (!(error instanceof TypeError || error instanceof DOMException)) throw error;
    throw new ApiProblem({ status: 0, name: 'unreachable', detail: error.message });
  }
}

// Counts failures in a row and waits after each, longer every time; whoever gets on says so with `progress()`.
export class Patience {
  // `onWaiting(problem)` is told before each pause.
  constructor({ signal, onWaiting = () => {}, attemptsMax = ATTEMPTS_MAX } = {}) {
    Object.assign(this, { signal, onWaiting, attemptsMax, failures: 0 });
  }

  progress() {
    this.failures = 0;
  }

  // Resolves when it is time to try again; throws `problem` where that is of no use.
  async after(problem) {
    this.signal?.throwIfAborted();
    const repeatable = problem instanceof ApiProblem && REPEATABLE.has(problem.status);
    if (!repeatable || problem.retryAfterS > RETRY_AFTER_S_MAX) throw problem;
    this.failures += 1;
    if (this.failures >= this.attemptsMax) throw problem;
    this.onWaiting(problem);
    const growing = Math.min(FIRST_PAUSE_MS * 2 ** (this.failures - 1), PAUSE_MS_MAX);
    // Never before the server's time, and not all clients at once.
    await pause((problem.retryAfterS ?? 0) * 1000 + growing * (0.5 + Math.random() / 2), this.signal);
    await online(this.signal);
  }
}

// `attempt()`, again after failures that pass: no connection, 429, 502, 503, 507. Only for what may happen twice.
export async function retried(attempt, options = {}) {
  const patience = new Patience(options);
  for (;;) {
    try {
      return await attempt();
    } catch (problem) {
      await patience.after(problem);
    }
  }
}

export function pause(lengthMs, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop);
      resolve();
    }, lengthMs);
    signal?.addEventListener('abort', stop, { once: true });
  });
}

// Waits while the browser says it has no network. Some workers hear no event, so it looks as well.
async function online(signal) {
  while (navigator.onLine === false) {
    const back = new AbortController();
    const heard = () => back.abort();
    globalThis.addEventListener('online', heard, { once: true });
    try {
      await pause(OFFLINE_LOOK_MS, signal ? AbortSignal.any([signal, back.signal]) : back.signal);
    } catch {
      signal?.throwIfAborted();
    } finally {
      globalThis.removeEventListener('online', heard);
    }
  }
}
