// The files of a receipt: claimed, downloaded early where the offer allows it, saved when the key is there.

import { ApiProblem, call } from './api.js';
import { decode, encode } from './base64url.js';
import { FormatError } from './errors.js';
import { showFiles, showTitle, titleOf } from './goods.js';
import { element, make, show, trouble } from './page.js';
import { openParcel, unlock } from './parcel.js';
import { prefetch } from './prefetch.js';
import { saveFiles } from './save.js';
import { say, size } from './words.js';

// Words for what goes wrong, by `kind`; for what is not here, those of a broken connection.
const REASONS = {
  'taken-down': 'js_get_taken_down',
  'offer-gone': 'js_get_gone',
  'grant-suspended': 'js_get_suspended',
  'grant-exhausted': 'js_get_exhausted',
  'digest-mismatch': 'js_get_damaged',
  'digests-invalid': 'js_get_damaged',
  'root-mismatch': 'js_get_damaged',
  'header-invalid': 'js_get_unopenable',
  'chunk-authentication-failed': 'js_get_unopenable',
  'ciphertext-truncated': 'js_get_unopenable',
  'release-secret-wrong': 'js_get_unopenable',
  'key-unwrap-failed': 'js_get_unopenable',
  'parcel-mismatch': 'js_get_damaged',
  'no-room': 'js_get_no_room',
  'no-way': 'js_get_no_way',
};
const EARLY_ENDS = { stored: 'js_get_early_done', 'no-room': 'js_get_early_no_room' };

export class Getting {
  // `receipt` as `parseReceipt` gives it.
  constructor(receipt) {
    this.receipt = receipt;
    this.parcel = null;
    this.claimed = null;
    this.early = null; // the prefetch under way or done
    this.saving = null; // its AbortController
    this.refused = false; // the receipt opens nothing: only news from the server can change that
    element('get-stop').onclick = () => this.saving?.abort();
    element('get-all').onclick = () => this.save(this.parcel.files);
    addEventListener('beforeunload', (event) => this.saving && event.preventDefault());
  }

  // Shows what was bought. False when the receipt does not open it.
  async open() {
    try {
      await this.claim();
      this.parcel = await openParcel(this.claimed, this.receipt.linkSecret);
    } catch (error) {
      if (error instanceof ApiProblem && error.name === 'claim-refused') trouble('js_receipt_wrong');
      else if (error instanceof FormatError) {
        trouble(error.kind === 'metadata-authentication-failed' ? 'js_receipt_wrong' : 'js_offer_lies');
      } else if (!(error instanceof ApiProblem) || error.name !== 'taken-down') throw error;
      this.refused = true;
      return false;
    }
    showTitle(this.parcel);
    show(element('goods-size')).textContent = `· ${size(this.totalBytes())}`;
    return true;
  }

  // `view`: the invoice as the server sees it now.
  async update(view) {
    show(element('get'), Boolean(this.parcel) && (view.key_allowed || view.bytes_allowed));
    if (!this.parcel) return;
    if (view.key_allowed) await this.unlocked();
    else if (view.bytes_allowed) this.startEarly();
  }

  async claim() {
    const { invoiceId, claimSecret } = this.receipt;
    const body = { claim_secret: encode(claimSecret) };
    this.claimed = await call('POST', `/invoices/${invoiceId}/claim`, { body });
  }

  async unlocked() {
    if (this.parcel.files[0].fileKey || this.saving) return;
    await this.claim();
    if (!this.claimed.release_secret) return;
    const released = decode(this.claimed.release_secret);
    try {
      await unlock(this.parcel, this.claimed, this.receipt.linkSecret, released);
    } catch (error) {
      // Whoever paid must hear of it.
      this.tell(...this.wordsOf(error));
      return;
    }
    const several = this.parcel.files.length > 1;
    const all = show(element('get-all'));
    all.textContent = say(several ? 'js_get_all' : 'js_get_one');
    if (several) showFiles(this.parcel, (file) => this.buttonOf(file));
    this.tell('js_get_ready', { total: size(this.totalBytes()) });
    document.body.dataset.unlocked = 'true';
    if (this.early) {
      // The buyer has waited for it beside the open page: it appears.
      await this.early;
      await this.save(this.parcel.files);
    }
  }

  startEarly() {
    if (this.early) return;
    const progress = show(element('get-progress'));
    const total = this.ciphertextBytes();
    this.tell('js_get_early', { done: size(0), total: size(total) });
    this.early = prefetch(this.job(this.parcel.files), {
      onProgress: (bytes) => {
        progress.value = bytes / total;
        this.tell('js_get_early', { done: size(bytes), total: size(total) });
      },
    }).then(
      ({ outcome }) => this.parcel.files[0].fileKey || this.tell(EARLY_ENDS[outcome] ?? 'js_get_wait'),
      // What could not be fetched early is fetched when the key is there.
      () => this.parcel.files[0].fileKey || this.tell('js_get_wait'),
    );
  }

  async save(files) {
    if (this.saving) return;
    this.saving = new AbortController();
    document.body.dataset.saving = 'true';
    const progress = show(element('get-progress'));
    this.enable(false);
    const startedAt = performance.now();
    const onProgress = (bytes, total) => {
      progress.value = total ? bytes / total : 1;
      const rate = (bytes * 1000) / (performance.now() - startedAt + 1);
      this.tell('js_get_running', { done: size(bytes), total: size(total), rate: size(rate) });
    };
    try {
      const onWaiting = () => this.tell('js_receipt_lost');
      await saveFiles(this.job(files), { onProgress, onWaiting, signal: this.saving.signal });
      progress.value = 1;
      this.tell('js_get_done');
    } catch (error) {
      this.tell(...this.wordsOf(error));
    } finally {
      this.saving = null;
      delete document.body.dataset.saving;
      this.enable(true);
    }
  }

  enable(ready) {
    show(element('get-stop'), !ready);
    for (const button of document.querySelectorAll('#get-all, #files button')) button.disabled = !ready;
  }

  buttonOf(file) {
    const button = make('button', say('js_get_file'), { type: 'button', className: 'btn quiet small' });
    button.setAttribute('aria-label', say('js_get_file_label', { path: file.path }));
    button.onclick = () => this.save([file]);
    return button;
  }

  job(files) {
    const { invoiceId, claimSecret } = this.receipt;
    return {
      offerId: element('live').dataset.offer,
      invoiceId,
      claimSecret: encode(claimSecret),
      files,
      zipName: files.length > 1 ? `${fileName(titleOf(this.parcel))}.zip` : null,
    };
  }

  wordsOf(error) {
    if (error.name === 'AbortError' || error.kind === 'cancelled') return ['js_get_stopped'];
    const why = say(REASONS[error.kind] ?? 'js_get_network');
    return ['js_get_failed', { why: error.path ? `${error.path}: ${why}` : why }];
  }

  tell(key, fields) {
    const status = element('get-status');
    const words = say(key, fields);
    if (status.textContent !== words) status.textContent = words;
  }

  totalBytes() {
    return this.parcel.files.reduce((sum, file) => sum + file.sizeBytes, 0);
  }

  ciphertextBytes() {
    return this.parcel.files.reduce((sum, file) => sum + file.ciphertextBytes, 0);
  }
}

// A title as a name that every system stores: the seller wrote it, so nothing of it may lead out of a folder.
function fileName(title) {
  const plain = title.replace(/[\p{C}\\/:*?"<>|]/gu, ' ').replace(/\s+/g, ' ').replace(/^[. ]+|[. ]+$/g, '');
  return plain.slice(0, 100) || 'bitcache';
}
