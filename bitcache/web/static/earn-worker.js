// Searches for a nonce, off the page, until it is ended from there.
//
// in   {seed, bits, high}: 32 bytes, and the first half of every nonce to try
// out  {tried}, now and then; {nonce}, 8 bytes, at the end

import { digestBlock } from './sha256.js';

const TOLD_EVERY = 1 << 18;
const MESSAGE_BITS = 40 * 8;

addEventListener('message', ({ data }) => search(data));

function search({ seed, bits, high }) {
  // One block: the seed's 8 words, the nonce's 2, and the padding of a message of 40 bytes.
  const block = new Int32Array(16);
  const view = new DataView(seed.buffer, seed.byteOffset, seed.byteLength);
  for (let i = 0; i < 8; i += 1) block[i] = view.getInt32(i * 4);
  block[8] = high;
  block[10] = 0x80000000 | 0;
  block[15] = MESSAGE_BITS;
  const state = new Int32Array(8);
  const schedule = new Int32Array(64);
  for (let low = 0; low < 2 ** 32; low += 1) {
    block[9] = low | 0;
    digestBlock(block, state, schedule);
    // The server asks for 30 bits at most, so the first word says it all.
    if (Math.clz32(state[0]) >= bits) {
      postMessage({ nonce: nonceOf(high, low) });
      return;
    }
    if (low % TOLD_EVERY === TOLD_EVERY - 1) postMessage({ tried: TOLD_EVERY });
  }
}

function nonceOf(high, low) {
  const nonce = new DataView(new ArrayBuffer(8));
  nonce.setInt32(0, high);
  nonce.setInt32(4, low | 0);
  return new Uint8Array(nonce.buffer);
}
