// QR codes, drawn in the browser: a link holds a secret, so neither our server nor another may draw it.
//
// ISO/IEC 18004 in the part we need: byte mode, error correction M, versions 1 to 20 (666 bytes). A matrix is an array
// of rows of 0 (light) and 1 (dark).

import { utf8 } from './bytes.js';
import { FormatError } from './errors.js';
import { bestMask, maskBit } from './qr-mask.js';

const VERSION_MAX = 20;
const QUIET = 4;
// Of level M, by version from 1: codewords of error correction per block, and blocks (table 9).
const CORRECTION = [10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26];
const BLOCKS = [1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16];
const LEVEL_M = 0;

// An SVG element: a white square and on it one black path. Throws FormatError 'text-too-long'.
export function qrCode(text) {
  const matrix = qrMatrix(text);
  const side = matrix.length + 2 * QUIET;
  const svg = element('svg', { viewBox: `0 0 ${side} ${side}`, 'shape-rendering': 'crispEdges' });
  svg.append(
    element('rect', { width: side, height: side, fill: '#fff' }),
    element('path', { d: outline(matrix), fill: '#000' }),
  );
  return svg;
}

export function qrMatrix(text) {
  const bytes = utf8(text);
  const symbol = smallestSymbol(bytes.length);
  place(symbol, interleave(symbol, dataCodewords(symbol, bytes)));
  const mask = bestMask(symbol.matrix, symbol.fixed);
  symbol.matrix.forEach((row, y) =>
    row.forEach((_, x) => {
      if (!symbol.fixed[y][x]) row[x] ^= maskBit(mask, y, x);
    }),
  );
  addFormat(symbol.matrix, mask);
  addVersion(symbol);
  return symbol.matrix;
}

function element(name, attributes) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

// A rectangle for every run of dark modules in a row.
function outline(matrix) {
  const runs = matrix.flatMap((row, y) =>
    Array.from(row.join('').matchAll(/1+/g), (run) => {
      const [x, length] = [run.index + QUIET, run[0].length];
      return `M${x} ${y + QUIET}h${length}v1h-${length}z`;
    }),
  );
  return runs.join('');
}

// The symbol: modules of function patterns are `fixed`, all others hold codewords (section 6.3)

function smallestSymbol(bytes) {
  for (let version = 1; version <= VERSION_MAX; version += 1) {
    const symbol = emptySymbol(version);
    if (4 + symbol.lengthBits + 8 * bytes <= 8 * symbol.dataCount) return symbol;
  }
  throw new FormatError('text-too-long', `${bytes} bytes do not fit a QR code`);
}

function emptySymbol(version) {
  const side = 17 + 4 * version;
  const grid = () => Array.from({ length: side }, () => new Array(side).fill(0));
  const symbol = { version, matrix: grid(), fixed: grid() };
  const set = (y, x, dark) => {
    symbol.matrix[y][x] = Number(dark);
    symbol.fixed[y][x] = 1;
  };
  addTiming(set, side);
  addFinders(set, side);
  addAlignment(set, side, version);
  reserveInformation(set, side, version);

  const free = symbol.fixed.flat().filter((fixed) => !fixed).length;
  const blocks = BLOCKS[version - 1];
  const correction = CORRECTION[version - 1];
  const dataCount = Math.floor(free / 8) - blocks * correction;
  return { ...symbol, blocks, correction, dataCount, lengthBits: version < 10 ? 8 : 16 };
}

function addTiming(set, side) {
  for (let at = 0; at < side; at += 1) {
    set(6, at, at % 2 === 0);
    set(at, 6, at % 2 === 0);
  }
}

// Squares within squares, with a light edge towards the rest of the symbol.
function addFinders(set, side) {
  for (const [top, left] of [[0, 0], [0, side - 7], [side - 7, 0]]) {
    for (let y = top - 1; y <= top + 7; y += 1) {
      for (let x = left - 1; x <= left + 7; x += 1) {
        const ring = Math.max(Math.abs(y - top - 3), Math.abs(x - left - 3));
        if (y >= 0 && x >= 0 && y < side && x < side) set(y, x, ring !== 2 && ring !== 4);
      }
    }
  }
}

function addAlignment(set, side, version) {
  const centres = alignmentCentres(side, version);
  const last = centres.length - 1;
  for (const [down, y] of centres.entries()) {
    for (const [along, x] of centres.entries()) {
      // Three corners have finders.
      if ((down === 0 && along === 0) || (down === 0 && along === last) || (down === last && along === 0)) continue;
      for (let dy = -2; dy <= 2; dy += 1) {
        for (let dx = -2; dx <= 2; dx += 1) set(y + dy, x + dx, Math.max(Math.abs(dy), Math.abs(dx)) !== 1);
      }
    }
  }
}

// Evenly spaced from the end on; what does not divide is between the first two (annex E, right up to version 31).
function alignmentCentres(side, version) {
  if (version === 1) return [];
  const gaps = Math.floor(version / 7) + 1;
  const step = 2 * Math.ceil((side - 13) / (2 * gaps));
  return [6, ...Array.from({ length: gaps }, (_, gap) => side - 7 - (gaps - 1 - gap) * step)];
}

// Format and version information come after the mask is chosen, and are light until then.
function reserveInformation(set, side, version) {
  for (const [y, x] of [...formatPlaces(side).flat(), [side - 8, 8]]) set(y, x, false);
  if (version >= 7) for (const [y, x] of versionPlaces(side).flat()) set(y, x, false);
}

// Codewords (sections 7.4 to 7.6)

function dataCodewords({ dataCount, lengthBits }, bytes) {
  const bits = [];
  const put = (value, length) => {
    for (let bit = length - 1; bit >= 0; bit -= 1) bits.push((value >> bit) & 1);
  };
  put(0b0100, 4); // byte mode
  put(bytes.length, lengthBits);
  for (const byte of bytes) put(byte, 8);
  put(0, Math.min(4, 8 * dataCount - bits.length));
  put(0, (8 - (bits.length % 8)) % 8);
  for (let pad = 0; bits.length < 8 * dataCount; pad += 1) put(pad % 2 ? 0x11 : 0xec, 8);
  return Array.from({ length: dataCount }, (_, at) => parseInt(bits.slice(8 * at, 8 * at + 8).join(''), 2));
}

// The first codeword of every block, then the second of every block, and so on; later blocks may be one longer.
function interleave({ blocks, correction, dataCount }, codewords) {
  const short = Math.floor(dataCount / blocks);
  const longer = dataCount % blocks;
  let at = 0;
  const data = Array.from({ length: blocks }, (_, block) => {
    const length = short + Number(block >= blocks - longer);
    at += length;
    return codewords.slice(at - length, at);
  });
  const checks = data.map((block) => correctionCodewords(block, correction));
  const across = (rows, length) => Array.from({ length }, (_, place) => rows.map((row) => row[place])).flat();
  return [...across(data, short + 1).filter((codeword) => codeword !== undefined), ...across(checks, correction)];
}

// Reed-Solomon over the field of 256 elements modulo x^8 + x^4 + x^3 + x^2 + 1, where 2 generates all but zero.
const POWER = [1];
for (let at = 1; at < 255; at += 1) POWER.push((POWER[at - 1] << 1) ^ (POWER[at - 1] & 0x80 ? 0x11d : 0));
const LOGARITHM = new Map(POWER.map((value, exponent) => [value, exponent]));
const times = (one, other) => (one && other ? POWER[(LOGARITHM.get(one) + LOGARITHM.get(other)) % 255] : 0);

function correctionCodewords(block, count) {
  // (x - 2^0) (x - 2^1) ... without its leading 1, highest power first.
  let generator = [];
  for (let root = 0; root < count; root += 1) {
    const shifted = [1, ...generator].map((factor) => times(factor, POWER[root]));
    generator = shifted.map((factor, at) => factor ^ (generator[at] ?? 0));
  }
  const remainder = new Array(count).fill(0);
  for (const codeword of block) {
    const factor = codeword ^ remainder.shift();
    remainder.push(0);
    generator.forEach((coefficient, at) => {
      remainder[at] ^= times(coefficient, factor);
    });
  }
  return remainder;
}

// From the lower right corner in columns of two, up and down in turn, past the vertical timing pattern (7.7.3).
function place({ matrix, fixed }, codewords) {
  const side = matrix.length;
  let bit = 0;
  let up = true;
  for (let right = side - 1; right > 0; right -= 2) {
    if (right === 6) right -= 1;
    for (let step = 0; step < side; step += 1) {
      const y = up ? side - 1 - step : step;
      for (const x of [right, right - 1]) {
        if (fixed[y][x]) continue;
        matrix[y][x] = ((codewords[bit >> 3] ?? 0) >> (7 - (bit & 7))) & 1;
        bit += 1;
      }
    }
    up = !up;
  }
}

// Format and version information (sections 7.9 and 7.10): each twice, with the remainder that corrects errors.

function withRemainder(value, generator) {
  const length = generator.toString(2).length - 1;
  let remainder = value << length;
  for (let bit = 31 - Math.clz32(remainder); remainder >> length; bit = 31 - Math.clz32(remainder)) {
    remainder ^= generator << (bit - length);
  }
  return (value << length) | remainder;
}

function addFormat(matrix, mask) {
  const format = withRemainder((LEVEL_M << 3) | mask, 0x537) ^ 0x5412;
  formatPlaces(matrix.length).forEach((places, bit) => {
    for (const [y, x] of places) matrix[y][x] = (format >> bit) & 1;
  });
  // A module that is always dark.
  matrix[matrix.length - 8][8] = 1;
}

// Where bit 0 to 14 go: around the upper left finder, and shared by the two others.
function formatPlaces(side) {
  return Array.from({ length: 15 }, (_, bit) => {
    // The timing pattern is in the way at 6.
    const past = (at) => (at >= 6 ? at + 1 : at);
    const around = bit < 8 ? [past(bit), 8] : [8, past(14 - bit)];
    return [around, bit < 8 ? [8, side - 1 - bit] : [side - 15 + bit, 8]];
  });
}

function addVersion({ matrix, version }) {
  if (version < 7) return;
  const information = withRemainder(version, 0x1f25);
  versionPlaces(matrix.length).forEach((places, bit) => {
    for (const [y, x] of places) matrix[y][x] = (information >> bit) & 1;
  });
}

function versionPlaces(side) {
  return Array.from({ length: 18 }, (_, bit) => {
    const [far, near] = [side - 11 + (bit % 3), Math.floor(bit / 3)];
    return [[near, far], [far, near]];
  });
}
