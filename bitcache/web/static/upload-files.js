// The list of files to sell: what was chosen, or, of an unfinished upload, what is to be chosen again.

import { FILES_MAX } from './metadata.js';
import { element, make, show } from './page.js';
import { pathTrouble, storedBytes } from './upload-plan.js';
import { say, size } from './words.js';

const ROWS_MAX = 200;
const PATH_TROUBLES = { path: 'js_upload_path', 'path-twice': 'js_upload_path_twice' };

export class ChosenFiles {
  #expected = null; // paths of an unfinished upload with their sizes
  #bytesFree;
  #onChange;

  constructor({ bytesFree, onChange }) {
    this.files = new Map(); // path: File
    this.#bytesFree = bytesFree;
    this.#onChange = onChange;
    this.#render();
  }

  // From now on only these files are taken, and all of them are needed. `listed` as upload-store has them.
  expect(listed) {
    this.#expected = new Map(listed.map((file) => [file.path, file.sizeBytes]));
    this.#changed(null);
  }

  clear() {
    this.files.clear();
    this.#changed(null);
  }

  // `found` as of drop.js. The same path again takes the place of the one before.
  add(found) {
    let strange = null;
    for (const { path, file } of found) {
      if (this.#expected && !this.#expected.has(path)) strange ??= path;
      else this.files.set(path, file);
    }
    if (!found.length) this.#changed(say('js_upload_nothing'));
    else this.#changed(strange === null ? null : say('js_upload_not_in', { path: strange }));
  }

  // It has to be chosen again.
  remove(path) {
    this.files.delete(path);
    this.#changed(null);
  }

  // Says what stands in the way of starting; true if nothing does.
  check() {
    const why = this.#trouble() ?? this.#missing();
    this.complain(why);
    if (why) element('files-wrong').focus();
    return !why;
  }

  #changed(why) {
    this.#render();
    this.complain(why ?? this.#trouble());
    this.#onChange(this.files);
  }

  // What is wrong with the files that are there.
  #trouble() {
    const paths = [...this.files.keys()];
    if (paths.length > FILES_MAX) return say('js_upload_too_many', { count: FILES_MAX });
    const refused = pathTrouble(paths);
    if (refused) return say(PATH_TROUBLES[refused.reason], { path: refused.path });
    // What was announced is counted already.
    if (this.#expected) return null;
    const needed = storedBytes([...this.files.values()].map((file) => file.size));
    if (needed <= this.#bytesFree) return null;
    return say('js_upload_too_large', { size: size(needed), room: size(this.#bytesFree) });
  }

  #missing() {
    if (!this.#expected) return this.files.size ? null : say('js_upload_no_files');
    const missing = [...this.#expected.keys()].filter((path) => !this.files.has(path));
    if (!missing.length) return null;
    const [path] = missing;
    const count = missing.length - 1;
    return count ? say('js_upload_missing_more', { path, count }) : say('js_upload_missing', { path });
  }

  // `why` is a sentence, or null where there is nothing to say.
  complain(why) {
    show(element('files-wrong'), Boolean(why)).textContent = why ?? '';
  }

  #render() {
    const sizes = this.#expected ?? new Map([...this.files].map(([path, file]) => [path, file.size]));
    // In the order in which buyers see them.
    const sorted = [...sizes].sort(([one], [other]) => (one < other ? -1 : 1));
    const rows = sorted.slice(0, ROWS_MAX).map(([path, sizeBytes]) => this.#row(path, sizeBytes));
    const more = sizes.size - rows.length;
    if (more > 0) rows.push(make('li', say('js_upload_more', { count: more }), { className: 'muted' }));
    const sum = sumOf([...sizes.values()]);
    element('files-sum').textContent = sizes.size ? sum : '';
    show(element('files'), sizes.size > 0).replaceChildren(...rows);
  }

  #row(path, sizeBytes) {
    const row = make('li');
    const there = this.files.has(path);
    row.append(
      make('span', path, { className: there ? 'path' : 'path missing' }),
      make('span', there ? size(this.files.get(path).size) : size(sizeBytes), { className: 'n' }),
    );
    if (!there) {
      row.append(make('span', say('js_upload_choose_again'), { className: 'flag' }));
    } else if (!this.#expected) {
      const button = make('button', say('js_upload_remove_short'), { type: 'button', className: 'tool' });
      button.setAttribute('aria-label', say('js_upload_remove', { path }));
      button.addEventListener('click', () => {
        const next = row.nextElementSibling?.querySelector('button')?.getAttribute('aria-label');
        this.remove(path);
        // The button is gone; whoever uses the keyboard goes on at the next.
        focusOn(next);
      });
      row.append(button);
    }
    return row;
  }
}

// "3 files, 1.2 MB"
export function sumOf(sizes) {
  const total = size(sizes.reduce((sum, sizeBytes) => sum + sizeBytes, 0));
  return sizes.length === 1
    ? say('js_upload_sum_one', { size: total })
    : say('js_upload_sum', { count: sizes.length, size: total });
}

function focusOn(label) {
  const buttons = [...element('files').querySelectorAll('button')];
  (buttons.find((button) => button.getAttribute('aria-label') === label) ?? element('choose-files')).focus();
}
