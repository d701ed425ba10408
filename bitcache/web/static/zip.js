// A ZIP archive as a stream, of files whose sizes are known and whose checksums are not (APPNOTE.TXT 6.3.10): stored,
// names in UTF-8, a data descriptor after each file, ZIP64 where a size, a place or a number needs it. Its length is
// known before its first byte.

import { utf8 } from './bytes.js';

const LOCAL_BYTES = 30;
const DESCRIPTOR_BYTES = 16;
const DESCRIPTOR64_BYTES = 24;
const LOCAL_EXTRA64_BYTES = 20;
const CENTRAL_BYTES = 46;
const END_BYTES = 22;
const END64_BYTES = 56 + 20;
// In place of a value that is in the ZIP64 field instead.
const ELSEWHERE = 0xffffffff;
const MANY = 0xffff;
const VERSION = 20;
const VERSION64 = 45;
const MADE_ON_UNIX = 3 << 8;
const DESCRIPTOR_FOLLOWS = 1 << 3;
const NAME_IS_UTF8 = 1 << 11;
// rw-r--r--
const REGULAR_FILE = 0o100644;

// Where everything will be, of `files` [{path, sizeBytes, modifiedAt}]: {entries, centralAt, centralBytes, big,
// lengthBytes}. `limits` are for tests: values from these on go into ZIP64 fields.
export function planZip(files, { zip64From = ELSEWHERE, manyFrom = MANY } = {}) {
  let at = 0;
  let centralBytes = 0;
  const entries = files.map((file) => {
    const name = utf8(file.path);
    const big = { size: file.sizeBytes >= zip64From, place: at >= zip64From };
    const entry = { file, name, at, big, time: dosTime(file.modifiedAt) };
    at += LOCAL_BYTES + name.length + (big.size ? LOCAL_EXTRA64_BYTES : 0);
    at += file.sizeBytes + (big.size ? DESCRIPTOR64_BYTES : DESCRIPTOR_BYTES);
    centralBytes += CENTRAL_BYTES + name.length + centralExtraBytes(big);
    return entry;
  });
  const big = at >= zip64From || centralBytes >= zip64From || entries.length >= manyFrom;
  const lengthBytes = at + centralBytes + (big ? END64_BYTES : 0) + END_BYTES;
  return { entries, centralAt: at, centralBytes, big, lengthBytes };
}

// The bytes of the archive, in pieces. `open(place)` gives the content of file `place`, in pieces.
export async function* zipPieces(plan, open) {
  const checksums = [];
  for (const [place, entry] of plan.entries.entries()) {
    yield localHeader(entry);
    let checksum = 0;
    let sizeBytes = 0;
    for await (const piece of open(place)) {
      checksum = crc32(piece, checksum);
      sizeBytes += piece.length;
      yield piece;
    }
    // Every place after it would be wrong.
    if (sizeBytes !== entry.file.sizeBytes) throw new Error(`${sizeBytes} bytes came for ${entry.file.sizeBytes}`);
    checksums.push(checksum);
    yield descriptor(entry, checksum);
  }
  for (const [place, entry] of plan.entries.entries()) yield centralHeader(entry, checksums[place]);
  yield end(plan);
}

function localHeader({ name, big, time }) {
  const record = new Record(LOCAL_BYTES + name.length + (big.size ? LOCAL_EXTRA64_BYTES : 0));
  record.u32(0x04034b50).u16(big.size ? VERSION64 : VERSION).u16(DESCRIPTOR_FOLLOWS | NAME_IS_UTF8).u16(0);
  // Checksum and sizes are zero here where a descriptor follows.
  record.u32(time).u32(0).u32(big.size ? ELSEWHERE : 0).u32(big.size ? ELSEWHERE : 0);
  record.u16(name.length).u16(big.size ? LOCAL_EXTRA64_BYTES : 0).bytes(name);
  // With this field in place, the sizes of the descriptor have eight bytes.
  if (big.size) record.u16(1).u16(16).u64(0).u64(0);
  return record.whole();
}

function descriptor({ file, big }, checksum) {
  const record = new Record(big.size ? DESCRIPTOR64_BYTES : DESCRIPTOR_BYTES);
  record.u32(0x08074b50).u32(checksum);
  if (big.size) record.u64(file.sizeBytes).u64(file.sizeBytes);
  else record.u32(file.sizeBytes).u32(file.sizeBytes);
  return record.whole();
}

function centralHeader({ file, name, at, big, time }, checksum) {
  const extraBytes = centralExtraBytes(big);
  const version = extraBytes ? VERSION64 : VERSION;
  const record = new Record(CENTRAL_BYTES + name.length + extraBytes);
  record.u32(0x02014b50).u16(MADE_ON_UNIX | version).u16(version).u16(DESCRIPTOR_FOLLOWS | NAME_IS_UTF8).u16(0);
  record.u32(time).u32(checksum);
  record.u32(big.size ? ELSEWHERE : file.sizeBytes).u32(big.size ? ELSEWHERE : file.sizeBytes);
  record.u16(name.length).u16(extraBytes).u16(0).u16(0).u16(0);
  record.u32(REGULAR_FILE * 0x10000).u32(big.place ? ELSEWHERE : at).bytes(name);
  if (extraBytes) record.u16(1).u16(extraBytes - 4);
  if (big.size) record.u64(file.sizeBytes).u64(file.sizeBytes);
  if (big.place) record.u64(at);
  return record.whole();
}

const centralExtraBytes = (big) => (big.size || big.place ? 4 + (big.size ? 16 : 0) + (big.place ? 8 : 0) : 0);

function end({ entries, centralAt, centralBytes, big }) {
  const record = new Record((big ? END64_BYTES : 0) + END_BYTES);
  if (big) {
    record.u32(0x06064b50).u64(56 - 12).u16(MADE_ON_UNIX | VERSION64).u16(VERSION64).u32(0).u32(0);
    record.u64(entries.length).u64(entries.length).u64(centralBytes).u64(centralAt);
    record.u32(0x07064b50).u32(0).u64(centralAt + centralBytes).u32(1);
  }
  const count = big ? MANY : entries.length;
  record.u32(0x06054b50).u16(0).u16(0).u16(count).u16(count);
  record.u32(big ? ELSEWHERE : centralBytes).u32(big ? ELSEWHERE : centralAt).u16(0);
  return record.whole();
}

// Fields of a header one after the other, least significant byte first.
class Record {
  #at = 0;
  #view;

  constructor(lengthBytes) {
    this.#view = new DataView(new ArrayBuffer(lengthBytes));
  }

  u16(value) {
    this.#view.setUint16(this.#at, value, true);
    this.#at += 2;
    return this;
  }

  u32(value) {
    this.#view.setUint32(this.#at, value, true);
    this.#at += 4;
    return this;
  }

  u64(value) {
    this.#view.setBigUint64(this.#at, BigInt(value), true);
    this.#at += 8;
    return this;
  }

  bytes(value) {
    new Uint8Array(this.#view.buffer).set(value, this.#at);
    this.#at += value.length;
    return this;
  }

  // Throws where a field was forgotten.
  whole() {
    if (this.#at !== this.#view.byteLength) throw new Error('a record of the archive has another length');
    return new Uint8Array(this.#view.buffer);
  }
}

// Date and time as DOS has them, as one u32: local time, even seconds, the years 1980 to 2107.
function dosTime(modifiedAt) {
  const at = new Date(modifiedAt * 1000);
  if (at.getFullYear() < 1980) return (1 << 21) | (1 << 16);
  const year = Math.min(at.getFullYear(), 2107) - 1980;
  const date = (year << 9) | ((at.getMonth() + 1) << 5) | at.getDate();
  const time = (at.getHours() << 11) | (at.getMinutes() << 5) | (at.getSeconds() >> 1);
  return ((date << 16) | time) >>> 0;
}

// CRC-32 of ZIP, eight bytes at a time: table k is the effect of a byte that has k more behind it.
const TABLES = checksumTables();

function checksumTables() {
  const tables = Array.from({ length: 8 }, () => new Uint32Array(256));
  for (let byte = 0; byte < 256; byte += 1) {
    let value = byte;
    for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    tables[0][byte] = value;
  }
  for (let behind = 1; behind < 8; behind += 1) {
    for (let byte = 0; byte < 256; byte += 1) {
      const before = tables[behind - 1][byte];
      tables[behind][byte] = tables[0][before & 0xff] ^ (before >>> 8);
    }
  }
  return tables;
}

// Of `bytes` after those that had `before`.
export function crc32(bytes, before = 0) {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = TABLES;
  let crc = ~before;
  let at = 0;
  for (const eights = bytes.length - (bytes.length % 8); at < eights; at += 8) {
    crc =
      t7[(crc ^ bytes[at]) & 0xff] ^
      t6[((crc >>> 8) ^ bytes[at + 1]) & 0xff] ^
      t5[((crc >>> 16) ^ bytes[at + 2]) & 0xff] ^
      t4[(crc >>> 24) ^ bytes[at + 3]] ^
      t3[bytes[at + 4]] ^
      t2[bytes[at + 5]] ^
      t1[bytes[at + 6]] ^
      t0[bytes[at + 7]];
  }
  for (; at < bytes.length; at += 1) crc = t0[(crc ^ bytes[at]) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}
