// The page on which a seller chooses files and terms, uploads, and gets a link.
//
// It is in one of these states: choosing, running (a worker uploads), resting (paused or stopped), done. What must
// outlive the page is in upload-store before anything is sent; files have to be chosen again after a reload, since a
// browser does not let a page keep them.

import { filesOfInput, listenForDrops } from './drop.js';
import { element, hasCryptography, show } from './page.js';
import { ChosenFiles } from './upload-files.js';
import { SaleForm } from './upload-form.js';
import { plannedParcel } from './upload-plan.js';
import { ProgressView } from './upload-progress.js';
import { showResult } from './upload-result.js';
import { UploadRun } from './upload-run.js';
import { openStore } from './upload-store.js';
import { asked, discardUpload, showUnfinished } from './upload-unfinished.js';
import { whyStopped } from './upload-words.js';
import { say } from './words.js';

const { accountId, publicUrl, bytesFree, priceFloorSat, unconfirmedSatMax } = element('upload').dataset;

const progress = new ProgressView();
let store = null;
let form = null;
let chosen = null;
let parcel = null; // of the upload that was begun, as upload-store has it
let running = null;

async function begin() {
  if (!hasCryptography()) return refuse('js_upload_insecure');
  try {
    store = await openStore();
  } catch {
    return refuse('js_upload_store');
  }
  form = new SaleForm({ priceFloorSat: Number(priceFloorSat), unconfirmedSatMax: Number(unconfirmedSatMax) });
  chosen = new ChosenFiles({ bytesFree: Number(bytesFree), onChange: (files) => form.suggestTitle(nameOf(files)) });
  listen();
  await showUnfinished(store, accountId, { onGoOn: takeUp, onDiscarded: startOver });
  show(element('upload'));
}

function refuse(key) {
  show(element('trouble')).textContent = say(key);
}

function listen() {
  for (const id of ['choose-files', 'choose-folder']) {
    element(id).addEventListener('change', ({ target }) => chosen.add(filesOfInput(target)));
  }
  listenForDrops(element('drop'), takeDropped, () => !element('sale').hidden);
  element('sale').addEventListener('submit', (event) => {
    event.preventDefault();
    start();
  });
  element('pause').addEventListener('click', pause);
  element('go-on').addEventListener('click', run);
  element('change').addEventListener('click', change);
  element('discard').addEventListener('click', discard);
  addEventListener('beforeunload', (event) => {
    if (running) event.preventDefault();
  });
}

async function takeDropped(found) {
  progress.say(say('js_upload_reading'));
  try {
    chosen.add(await found);
  } catch (failure) {
    chosen.complain(say('js_upload_unreadable', { path: failure.path ?? failure.message }));
  }
  progress.say('');
}

// The folder or file that all of it is in, or nothing.
function nameOf(files) {
  const names = new Set([...files.keys()].map((path) => path.split('/')[0]));
  return names.size === 1 ? [...names][0] : '';
}

// Choosing to running

async function start() {
  if (!chosen.check() && !parcel?.parcelId) return;
  const said = form.read();
  if (!said) return;
  element('start').disabled = true;
  try {
    if (parcel) {
      Object.assign(parcel, said);
      await store.changeParcel(parcel.id, said);
    } else {
      const planned = await plannedParcel({ accountId, chosen: chosen.files, ...said });
      await store.add(planned.parcel, planned.files);
      parcel = planned.parcel;
      chosen.expect(planned.files);
    }
  } finally {
    element('start').disabled = false;
  }
  run();
}

// An unfinished upload: its terms in the form, its files to be chosen again, unless all of them are on the server.
function takeUp(unfinished, files) {
  parcel = unfinished;
  form.fill(parcel);
  chosen.clear();
  chosen.expect(files);
  show(element('unfinished'), false);
  show(element('start-new'), false);
  show(element('start-again'));
  if (parcel.parcelId) run();
  else element('choose-files').focus();
}

function run() {
  if (!parcel.parcelId && !chosen.check()) return change();
  for (const id of ['sale', 'unfinished']) show(element(id), false);
  progress.begin();
  element('progress-title').focus();
  running = new UploadRun({ id: parcel.id, sources: [...chosen.files], hear });
}

function hear(news) {
  if (news.kind === 'done') finish(news);
  else if (news.kind === 'stopped') stopped(news.why);
  else progress.hear(news);
}

// Running to resting

function endRun() {
  running?.end();
  running = null;
}

function pause() {
  endRun();
  progress.rest(say('js_upload_paused'));
  element('go-on').focus();
}

async function stopped(why) {
  endRun();
  // What it got as far as: the parcel may be made already.
  parcel = (await store.parcel(parcel.id)) ?? parcel;
  progress.rest(say('js_upload_stopped'), whyStopped(why), { signIn: why.status === 401 });
  // The browser gives a changed file out no more, however often it is asked.
  if (why.name === 'source-unreadable') {
    chosen.remove(why.path);
    change();
  }
}

// Resting to choosing

function change() {
  form.fill(parcel);
  show(element('start-new'), false);
  show(element('start-again'));
  show(element('sale'));
}

async function discard({ target }) {
  if (!asked(target, 'js_upload_discard_ask')) return;
  target.disabled = true;
  await discardUpload(store, parcel, await store.files(parcel.id));
  startOver();
}

function startOver() {
  location.reload();
}

// Running to done

async function finish({ parcelId, offerId }) {
  endRun();
  progress.end();
  const kept = showResult({ ...parcel, parcelId, offerId }, publicUrl);
  // Where the link is kept nowhere else, the unfinished upload still tells it after a reload.
  if (kept) await store.remove(parcel.id);
}

begin();
