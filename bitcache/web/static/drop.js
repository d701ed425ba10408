// Files that a person chose or dropped, with their paths: [{path, file}], paths in normalization form C.
//
// A folder keeps its own name as the first part of the paths, as with the command line.

import { FILES_MAX } from './metadata.js';

// More than a parcel holds are not even looked at; one too many shows that there are.
const LOOKED_AT_MAX = FILES_MAX + 1;

// A file or folder that the browser may not read.
class Unreadable extends Error {
  constructor(path) {
    super('it cannot be read');
    this.path = path;
  }
}

const chosen = (path, file) => ({ path: path.normalize('NFC'), file });

// Of an `<input type=file>`; it is emptied, so that the same choice can be made again.
export function filesOfInput(input) {
  const found = [...input.files].map((file) => chosen(file.webkitRelativePath || file.name, file));
  input.value = '';
  return found;
}

// Of a drop. Must be called within the event: afterwards the browser hands out nothing. Throws Unreadable.
function filesOfDrop(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === 'file');
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? null);
  const plain = items.map((item, place) => (entries[place] ? null : item.getAsFile()));
  return walked(entries.filter(Boolean), plain.filter(Boolean));
}

async function walked(entries, plain) {
  const found = plain.map((file) => chosen(file.name, file));
  for (const entry of entries) await walk(entry, '', found);
  return found;
}

async function walk(entry, folder, found) {
  if (found.length >= LOOKED_AT_MAX) return;
  const path = folder + entry.name;
  if (entry.isFile) found.push(chosen(path, await answered(path, (...heard) => entry.file(...heard))));
  else for (const inside of await listed(entry, path)) await walk(inside, `${path}/`, found);
}

// A reader gives up to 100 entries at a time, and none at the end.
async function listed(folder, path) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const some = await answered(path, (...heard) => reader.readEntries(...heard));
    if (!some.length) return all;
    all.push(...some);
  }
}

function answered(path, ask) {
  return new Promise((resolve, reject) => ask(resolve, () => reject(new Unreadable(path))));
}

// `onFiles(promise)` hears what is dropped anywhere on the page: beside the zone a browser would open the file and
// leave the page.
export function listenForDrops(zone, onFiles, accepts) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes('Files');
  const mark = (over) => zone.classList.toggle('over', over);
  addEventListener('dragover', (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = accepts() ? 'copy' : 'none';
    mark(accepts());
  });
  addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) mark(false);
  });
  addEventListener('drop', (event) => {
    mark(false);
    if (!holdsFiles(event)) return;
    event.preventDefault();
    if (accepts()) onFiles(filesOfDrop(event.dataTransfer));
  });
}
