// Gives memory back at once. Decrypting makes a new megabyte for every megabyte, and the collector leaves what was
// used lying about by the hundreds. What is sent to a port that nobody holds is gone.

const WORTH_BYTES = 256 << 10;

const { port1, port2 } = new MessageChannel();
port2.close();

// `piece` must not be used by anybody any more; what is small, or a part of something, stays to the collector.
export function release(piece) {
  const { buffer } = piece;
  if (piece.length >= WORTH_BYTES && piece.length === buffer.byteLength) port1.postMessage(null, [buffer]);
}
