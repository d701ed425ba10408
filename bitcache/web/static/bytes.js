// Small things on bytes that several modules of the format need.

const encoder = new TextEncoder();

export const utf8 = (text) => encoder.encode(text);

export function joined(...pieces) {
  const whole = new Uint8Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

// Takes as long for any difference as for none: what is compared may be derived from a secret.
export function sameBytes(one, other) {
  if (one.length !== other.length) return false;
  let difference = 0;
  for (let at = 0; at < one.length; at += 1) difference |= one[at] ^ other[at];
  return difference === 0;
}
