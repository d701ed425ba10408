// What is sold, as the link's secret tells it: title, note, preview and files, put on the page as text.

import { element, make, show } from './page.js';
import { say, size } from './words.js';

const FILES_SHOWN = 200;

// What a parcel is called: its title, else its only file, else how many there are.
export function titleOf(parcel) {
  if (parcel.title) return parcel.title;
  if (parcel.files.length === 1) return parcel.files[0].path.split('/').at(-1);
  return say('js_offer_untitled', { count: parcel.files.length });
}

export function showTitle(parcel) {
  const title = titleOf(parcel);
  element('title').textContent = title;
  document.title = `${title} · Bitcache`;
}

// `action(file)` may give an element that stands beside a file, such as a button.
export function showFiles(parcel, action = () => null) {
  const list = element('files');
  list.replaceChildren();
  for (const file of parcel.files.slice(0, FILES_SHOWN)) {
    const line = make('li');
    line.append(make('span', file.path, { className: 'path' }), make('span', size(file.sizeBytes), { className: 'n' }));
    const beside = action(file);
    if (beside) line.append(beside);
    list.append(line);
  }
  const more = parcel.files.length - FILES_SHOWN;
  if (more > 0) list.append(make('li', say('js_offer_more', { count: more }), { className: 'muted' }));
}

export function showGoods(parcel) {
  showTitle(parcel);
  showFiles(parcel);
  if (parcel.note) show(element('note')).textContent = parcel.note;
  if (parcel.preview) {
    const picture = element('preview');
    picture.src = URL.createObjectURL(new Blob([parcel.preview.image], { type: parcel.preview.mediaType }));
    // A picture that is none stays away.
    picture.onload = () => show(picture);
  }
  show(element('goods'));
}
