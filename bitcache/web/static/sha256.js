// SHA-256 of one short message, for the proof of work: WebCrypto answers one digest at a time, much too slowly.

const FIRST_PRIMES = 64;
const BLOCK_WORDS = 16;

// The fractional parts of roots of the first primes, as the standard (FIPS 180-4) defines its constants.
function primes() {
  const found = [];
  for (let n = 2; found.length < FIRST_PRIMES; n += 1) {
    if (found.every((prime) => n % prime)) found.push(n);
  }
  return found;
}
const fraction = (root) => ((root % 1) * 2 ** 32) | 0;
const ROUNDS = Int32Array.from(primes(), (prime) => fraction(Math.cbrt(prime)));
const INITIAL = Int32Array.from(primes().slice(0, 8), (prime) => fraction(Math.sqrt(prime)));

// The digest of one block, 16 words with their padding, into `state`: 8 words.
export function digestBlock(block, state, schedule) {
  for (let i = 0; i < BLOCK_WORDS; i += 1) schedule[i] = block[i];
  for (let i = BLOCK_WORDS; i < FIRST_PRIMES; i += 1) {
    const far = schedule[i - 15];
    const near = schedule[i - 2];
    const s0 = ((far >>> 7) | (far << 25)) ^ ((far >>> 18) | (far << 14)) ^ (far >>> 3);
    const s1 = ((near >>> 17) | (near << 15)) ^ ((near >>> 19) | (near << 13)) ^ (near >>> 10);
    schedule[i] = (schedule[i - 16] + s0 + schedule[i - 7] + s1) | 0;
  }
  // One by one: taking the array apart would cost a fifth of it all.
  let a = INITIAL[0];
  let b = INITIAL[1];
  let c = INITIAL[2];
  let d = INITIAL[3];
  let e = INITIAL[4];
  let f = INITIAL[5];
  let g = INITIAL[6];
  let h = INITIAL[7];
  for (let i = 0; i < FIRST_PRIMES; i += 1) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUNDS[i] + schedule[i]) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + t1) | 0;
    d = c;
    c = b;
    b = a;
    a = (t1 + t2) | 0;
  }
  state[0] = (INITIAL[0] + a) | 0;
  state[1] = (INITIAL[1] + b) | 0;
  state[2] = (INITIAL[2] + c) | 0;
  state[3] = (INITIAL[3] + d) | 0;
  state[4] = (INITIAL[4] + e) | 0;
  state[5] = (INITIAL[5] + f) | 0;
  state[6] = (INITIAL[6] + g) | 0;
  state[7] = (INITIAL[7] + h) | 0;
}
