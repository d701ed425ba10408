// The page's words: the server put into `data-words` those its scripts need, in the reader's language.

const WORDS = JSON.parse(document.body.dataset.words ?? '{}');

export const language = document.documentElement.lang;

// say('js_upload_left_s', {count: 3}): the words of a key with its {fields} filled in. Throws for a key that the page
// has not.
export function say(key, fields = {}) {
  if (!(key in WORDS)) throw new Error(`the page has no words for ${key}`);
  return WORDS[key].replace(/\{(\w+)\}/g, (whole, name) => (name in fields ? String(fields[name]) : whole));
}

// 12 345 678 with thin spaces, as on the server's side of the page.
export const sat = (amountSat) => String(amountSat).replace(/\B(?=(\d{3})+$)/g, '\u202f');

// Decimal units, one decimal from kB on, as on the server's side of the page.
export function size(sizeBytes) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let power = 0;
  while (power + 1 < units.length && sizeBytes >= 1000 ** (power + 1)) power += 1;
  if (power === 0) return `${sizeBytes} B`;
  const tenths = Math.floor((sizeBytes * 10) / 1000 ** power);
  return `${Math.floor(tenths / 10)}.${tenths % 10} ${units[power]}`;
}
