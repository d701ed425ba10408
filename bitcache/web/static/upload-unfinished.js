// Uploads that this browser began and did not finish: go on with one, or throw it away.

import { ApiProblem } from './api.js';
import { element, make, show } from './page.js';
import { sellerToken } from './seller-token.js';
import { UploadApi } from './upload-api.js';
import { sumOf } from './upload-files.js';
import { inLanes } from './upload-lanes.js';
import { say } from './words.js';

const LANES = 6;

// The list. `onGoOn(parcel, files)` and `onDiscarded()` hear what was chosen.
export async function showUnfinished(store, accountId, { onGoOn, onDiscarded }) {
  const parcels = await store.parcels(accountId);
  const rows = [];
  for (const parcel of parcels) rows.push(rowOf(store, parcel, await store.files(parcel.id), { onGoOn, onDiscarded }));
  element('unfinished-list').replaceChildren(...rows);
  show(element('unfinished'), rows.length > 0);
}

function rowOf(store, parcel, files, { onGoOn, onDiscarded }) {
  const title = parcel.description.title || say('js_upload_untitled');
  const sum = sumOf(files.map((file) => file.sizeBytes));
  const said = say(parcel.parcelId ? 'js_upload_unfinished_ready' : 'js_upload_unfinished', { title, sum });
  const row = make('li');
  row.append(make('span', said, { className: 'path' }));

  const goOn = button('js_upload_go_on', 'js_upload_go_on_with', title);
  goOn.addEventListener('click', () => onGoOn(parcel, files));
  const discard = button('js_upload_discard_short', 'js_upload_discard_one', title);
  discard.addEventListener('click', async () => {
    if (!asked(discard, 'js_upload_discard_ask', 'js_upload_discard_ask_one', title)) return;
    discard.disabled = true;
    await discardUpload(store, parcel, files);
    onDiscarded();
  });
  row.append(goOn, discard);
  return row;
}

// Forgets keys and digests, and asks the server to forget the bytes. What it does not hear of, it sweeps away in a
// week.
export async function discardUpload(store, parcel, files) {
  const api = new UploadApi({ token: sellerToken, tell: () => {}, attemptsMax: 2 });
  const paths = parcel.parcelId
    ? [`/parcels/${parcel.parcelId}`]
    : files.filter((file) => file.fileId).map((file) => `/files/${file.fileId}`);
  try {
    await inLanes(LANES, paths, (path) => api.forget(path));
  } catch (problem) {
    if (!(problem instanceof ApiProblem)) throw problem;
  }
  await store.remove(parcel.id);
}

// The first click asks, the second answers.
export function asked(node, short, long, title) {
  if (node.dataset.asked) return true;
  node.dataset.asked = 'yes';
  node.textContent = say(short);
  if (title) node.setAttribute('aria-label', say(long, { title }));
  return false;
}

function button(short, long, title) {
  const made = make('button', say(short), { type: 'button', className: 'tool' });
  made.setAttribute('aria-label', say(long, { title }));
  return made;
}
