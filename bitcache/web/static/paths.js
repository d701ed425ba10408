// The one rule for paths inside a parcel, for those who make one and those who open one (docs/FORMAT.md, section 9).
//
// A path is relative, in normalization form C, and means the same plain file on every system: a buyer must not be led
// out of the folder, onto a device, or into one file by two names.

import { utf8 } from './bytes.js';
import { FormatError } from './errors.js';

const PATH_BYTES_MAX = 1024;
const SEGMENT_BYTES_MAX = 255;
// Controls, format characters, lone surrogates, line and paragraph separators make one name look like another.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const DEVICE = /^(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])$/;
const CHEROKEE = /[\u13a0-\u13fd\uab70-\uabbf]/;

// The paths in form C and in order, each right in itself and none in another's way.
// Throws FormatError 'path-refused' with the `path`, which may hold anything.
export function checkPaths(paths) {
  const checked = paths.map(checkPath);
  const folded = checked.map(fold);
  const files = new Set();
  for (const [at, path] of folded.entries()) {
    // Paths that differ only in case are one file on Windows and macOS.
    if (files.has(path)) throw refused(checked[at], 'another file has the same path');
    files.add(path);
  }
  for (const [at, path] of folded.entries()) {
    for (let slash = path.indexOf('/'); slash >= 0; slash = path.indexOf('/', slash + 1)) {
      if (files.has(path.slice(0, slash))) throw refused(checked[at], 'one of its folders is also a file');
    }
  }
  return checked;
}

function checkPath(given) {
  const path = given.normalize('NFC');
  if (path === '') throw refused(path, 'it is empty');
  if (INVISIBLE.test(path)) throw refused(path, 'it contains an invisible character');
  if (path.includes('\\')) throw refused(path, 'it contains a backslash');
  if (path.includes(':')) throw refused(path, 'it contains a colon');
  if (utf8(path).length > PATH_BYTES_MAX) throw refused(path, `it is longer than ${PATH_BYTES_MAX} bytes`);
  for (const segment of path.split('/')) checkSegment(path, segment);
  return path;
}

function checkSegment(path, segment) {
  // Also what an absolute path begins with.
  if (segment === '') throw refused(path, 'it has an empty segment');
  // Also `.` and `..`.
  if (/[. ]$/.test(segment)) throw refused(path, 'a segment ends with a dot or a space');
  if (utf8(segment).length > SEGMENT_BYTES_MAX) throw refused(path, `a segment exceeds ${SEGMENT_BYTES_MAX} bytes`);
  // Windows opens the device for "nul.txt" and "NUL .txt" too.
  const [name] = segment.split('.', 1);
  if (DEVICE.test(name.replace(/ +$/, '').toUpperCase())) throw refused(path, 'it names a device of Windows');
}

// Full Unicode case folding, which JavaScript lacks, and form C. Character by character, because whole words give a
// sigma at their end another lower case. A test compares every character with Python's str.casefold.
export const fold = (path) => Array.from(path, foldCharacter).join('').normalize('NFC');

function foldCharacter(character) {
  // Its upper case is I, that of i, but the two are not equal.
  if (character === 'ı') return character;
  // Its lower case is ß, which folds on.
  if (character === 'ẞ') return 'ss';
  // Its small letters are younger than its capitals, so Unicode folds up.
  if (CHEROKEE.test(character)) return character.toUpperCase();
  return character.toUpperCase().toLowerCase();
}

const refused = (path, reason) => new FormatError('path-refused', reason, { path });
