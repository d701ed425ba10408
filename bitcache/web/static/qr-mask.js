// Masks of QR codes (ISO/IEC 18004, section 7.8): which of eight patterns makes a symbol easiest to scan.

const MASKS = [
  (y, x) => (y + x) % 2,
  (y) => y % 2,
  (y, x) => x % 3,
  (y, x) => (y + x) % 3,
  (y, x) => (Math.floor(y / 2) + Math.floor(x / 3)) % 2,
  (y, x) => ((y * x) % 2) + ((y * x) % 3),
  (y, x) => (((y * x) % 2) + ((y * x) % 3)) % 2,
  (y, x) => (((y + x) % 2) + ((y * x) % 3)) % 2,
];
const FINDER = '1011101';
const LIGHT = '0000';

// 1 where mask number `mask` inverts a module.
export const maskBit = (mask, y, x) => Number(MASKS[mask](y, x) === 0);

// The number of the mask with the lowest penalty, and the lowest such number; `fixed` modules are not masked.
export function bestMask(matrix, fixed) {
  const scores = MASKS.map((_, mask) =>
    penalty(matrix.map((row, y) => row.map((module, x) => (fixed[y][x] ? module : module ^ maskBit(mask, y, x))))),
  );
  return scores.indexOf(Math.min(...scores));
}

function penalty(matrix) {
  const side = matrix.length;
  const rows = matrix.map((row) => row.join(''));
  const columns = matrix.map((_, x) => matrix.map((row) => row[x]).join(''));
  const lines = [...rows, ...columns];
  const inLines = lines.reduce((sum, line) => sum + runs(line) + finders(line), 0);
  const dark = matrix.flat().filter(Boolean).length;
  const unbalanced = 10 * Math.floor(Math.abs(20 * dark - 10 * side * side) / (side * side));
  return inLines + squares(matrix) + unbalanced;
}

// 3 for five modules of one colour in a line, and 1 for each more.
function runs(line) {
  return (line.match(/0{5,}|1{5,}/g) ?? []).reduce((sum, run) => sum + run.length - 2, 0);
}

// 40 for what looks like a finder pattern with light before or after it; the margin is light, too.
function finders(line) {
  const wide = LIGHT + line + LIGHT;
  let score = 0;
  for (let at = wide.indexOf(FINDER); at >= 0; ) {
    const after = at + FINDER.length;
    const apart = wide.slice(at - 4, at) === LIGHT || wide.slice(after, after + 4) === LIGHT;
    if (apart) score += 40;
    at = wide.indexOf(FINDER, apart ? after : at + 1);
  }
  return score;
}

// 3 for every square of four modules of one colour.
function squares(matrix) {
  let score = 0;
  for (let y = 1; y < matrix.length; y += 1) {
    for (let x = 1; x < matrix.length; x += 1) {
      const dark = matrix[y][x] + matrix[y][x - 1] + matrix[y - 1][x] + matrix[y - 1][x - 1];
      if (dark === 0 || dark === 4) score += 3;
    }
  }
  return score;
}
