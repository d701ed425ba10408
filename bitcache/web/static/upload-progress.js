// How the upload stands: a bar, figures that move, and a few words for who listens instead of looking.
//
// The live region speaks at turns only (begun, each quarter, connection lost, paused): figures change ten times a
// second and would drown everything else.

import { element, show } from './page.js';
import { say, size } from './words.js';

const SHOWN_EVERY_MS = 150;
const SPEED_OVER_MS = 8_000;
const SPEED_AFTER_MS = 1_000;
const ANNOUNCED_EVERY_PERCENT = 25;
const PHASES = {
  preparing: 'js_upload_preparing',
  sending: 'js_upload_running',
  finishing: 'js_upload_finishing',
};

export class ProgressView {
  #title = document.title;
  #samples = []; // [time, sentBytes]
  #shownAt = 0;
  #latest = null;
  #announced = 0;
  #timer = null;

  begin() {
    this.#samples = [];
    this.#latest = null;
    this.#announced = 0;
    for (const id of ['why', 'go-on', 'change', 'discard']) show(element(id), false);
    for (const id of ['progress', 'pause', 'keep-open']) show(element(id));
    this.#clearFigures();
    this.say(say('js_upload_preparing'));
  }

  hear(news) {
    if (news.kind === 'progress') this.#take(news);
    else if (news.kind === 'prepared') this.#showPrepared(news);
    else if (news.kind === 'phase') this.say(say(PHASES[news.phase]));
    else if (news.kind === 'waiting') this.say(say(waitingWords(news)));
    else if (news.kind === 'back') this.say(say('js_upload_back'));
    else if (news.kind === 'anew') this.say(say('js_upload_anew', { path: news.path }));
  }

  // It stands still: paused, or stopped for the reason `why`, a sentence.
  rest(said, why = null, { signIn = false } = {}) {
    clearTimeout(this.#timer);
    this.#timer = null;
    for (const id of ['pause', 'keep-open']) show(element(id), false);
    for (const id of ['go-on', 'change', 'discard']) show(element(id));
    // What was on its way is lost; what is stored, stays.
    if (this.#latest) this.#showFigures(this.#latest.storedBytes, this.#latest.totalBytes);
    this.#clearSpeed();
    document.title = this.#title;
    this.say(said);
    show(element('why'), why !== null).querySelector('p').textContent = why ?? '';
    show(element('sign-in-again'), signIn);
  }

  end() {
    clearTimeout(this.#timer);
    this.#timer = null;
    document.title = this.#title;
    show(element('progress'), false);
    this.say('');
  }

  say(text) {
    element('news').textContent = text;
  }

  #take(news) {
    this.#latest = news;
    this.#timer ??= setTimeout(() => this.#show(), Math.max(0, this.#shownAt + SHOWN_EVERY_MS - performance.now()));
  }

  // Thousands of files take minutes before the first byte leaves.
  #showPrepared({ done, count }) {
    if (count > 1) element('figures').textContent = say('js_upload_prepared', { done, count });
  }

  #show() {
    this.#timer = null;
    this.#shownAt = performance.now();
    const { sentBytes, totalBytes } = this.#latest;
    // A part that has to be sent again takes its bytes back.
    if (this.#samples.length && sentBytes < this.#samples.at(-1)[1]) this.#samples = [];
    this.#samples.push([this.#shownAt, sentBytes]);
    while (this.#samples[0][0] < this.#shownAt - SPEED_OVER_MS) this.#samples.shift();
    const percent = this.#showFigures(sentBytes, totalBytes);
    document.title = `${percent} % · ${this.#title}`;
    this.#showSpeed(totalBytes - sentBytes);
    if (percent >= this.#announced + ANNOUNCED_EVERY_PERCENT && percent < 100) {
      this.#announced = percent - (percent % ANNOUNCED_EVERY_PERCENT);
      this.say(say('js_upload_running_percent', { percent: this.#announced }));
    }
  }

  // Returns the whole percents.
  #showFigures(bytes, totalBytes) {
    const percent = Math.floor((100 * bytes) / totalBytes);
    element('bar').value = percent;
    const fields = { sent: size(bytes), total: size(totalBytes), percent };
    element('figures').textContent = say('js_upload_figures', fields);
    return percent;
  }

  #showSpeed(leftBytes) {
    const [[since, before]] = this.#samples;
    const [now, after] = this.#samples.at(-1);
    if (now - since < SPEED_AFTER_MS || after === before) return;
    const bytesPerS = ((after - before) * 1000) / (now - since);
    element('speed').textContent = say('js_upload_speed', { speed: size(Math.round(bytesPerS)) });
    element('left').textContent = leftWords(Math.ceil(leftBytes / bytesPerS));
  }

  #clearFigures() {
    element('bar').removeAttribute('value');
    element('figures').textContent = '';
    this.#clearSpeed();
  }

  #clearSpeed() {
    element('speed').textContent = '';
    element('left').textContent = '';
  }
}

function waitingWords({ name, status }) {
  if (status === 507) return 'js_upload_server_full';
  return name === 'unreachable' ? 'js_upload_lost' : 'js_upload_busy';
}

function leftWords(seconds) {
  if (seconds < 60) return say('js_upload_left_s', { count: seconds });
  const minutes = Math.ceil(seconds / 60);
  if (minutes < 60) return say('js_upload_left_min', { count: minutes });
  return say('js_upload_left_h', { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}
