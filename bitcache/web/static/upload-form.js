// Description and terms: read from the form and checked, or put back into it.

import { utf8 } from './bytes.js';
import { NOTE_BYTES_MAX, REFUSED_IN_TEXT, TITLE_BYTES_MAX } from './metadata.js';
import { element, show } from './page.js';
import { previewOf } from './upload-preview.js';
import { sat, say, size } from './words.js';

const SAT_PER_BTC = 100_000_000;
const SAT_MAX = 21_000_000 * SAT_PER_BTC;
const CONFIRMATIONS_MAX = 100;
const DOWNLOADS_MAX = 1_000_000_000;
const FIELDS = ['title', 'note', 'price', 'confirmations', 'expires', 'limit'];

export class SaleForm {
  #floorSat;
  #unconfirmedSatMax;
  #preview = null;
  #titleIsOurs = true;

  constructor({ priceFloorSat, unconfirmedSatMax }) {
    this.#floorSat = priceFloorSat;
    this.#unconfirmedSatMax = unconfirmedSatMax;
    element('expires').min = dayText(new Date());
    element('price').addEventListener('input', () => this.#showBtc());
    element('title').addEventListener('input', () => {
      this.#titleIsOurs = false;
    });
    element('preview').addEventListener('change', () => this.#takePreview());
    element('preview-remove').addEventListener('click', () => {
      this.#setPreview(null);
      element('preview').focus();
    });
  }

  // A title to begin with, until the seller writes one.
  suggestTitle(text) {
    if (this.#titleIsOurs && !REFUSED_IN_TEXT.test(text)) element('title').value = text;
  }

  // {description, terms}, or null with what is wrong beside the fields and the first of them in focus.
  read() {
    const values = Object.fromEntries(FIELDS.map((name) => [name, element(name).value.trim()]));
    const keyAt = whole(values.confirmations, 0, CONFIRMATIONS_MAX);
    const priceSat = whole(values.price.replace(/\s/g, ''), 0, SAT_MAX);
    const wrong = {
      title: textTrouble(values.title, TITLE_BYTES_MAX, 'js_upload_title_long'),
      // Line feed and tab are allowed in it.
      note: textTrouble(values.note.replace(/[\n\t]/g, ' '), NOTE_BYTES_MAX, 'js_upload_note_long'),
      price: this.#priceTrouble(priceSat),
      confirmations: this.#confirmationsTrouble(keyAt, priceSat),
      expires: endOfDay(values.expires) <= Date.now() / 1000 && values.expires ? say('js_upload_date_wrong') : null,
      limit: values.limit && whole(values.limit, 1, DOWNLOADS_MAX) === null ? say('js_upload_limit_wrong') : null,
    };
    // A date that is none reads as empty.
    if (element('expires').validity.badInput) wrong.expires = say('js_upload_date_wrong');
    if (element('limit').validity.badInput) wrong.limit = say('js_upload_limit_wrong');
    for (const name of FIELDS) complain(name, wrong[name]);
    const first = FIELDS.find((name) => wrong[name]);
    if (first) {
      element(first).focus();
      return null;
    }
    return {
      description: { title: values.title, note: values.note, preview: this.#preview },
      terms: {
        priceSat,
        keyAt,
        bytesAt: element('prefetch')?.checked ? 0 : keyAt,
        expiresAt: values.expires ? endOfDay(values.expires) : null,
        maxDownloads: values.limit ? Number(values.limit) : null,
      },
    };
  }

  // As it was; what is on the server already cannot be described anew.
  fill({ description, terms, parcelId }) {
    this.#titleIsOurs = false;
    element('title').value = description.title;
    element('note').value = description.note;
    this.#setPreview(description.preview);
    element('details').disabled = Boolean(parcelId);
    element('price').value = String(terms.priceSat);
    element('confirmations').value = String(terms.keyAt);
    if (element('prefetch')) element('prefetch').checked = terms.bytesAt < terms.keyAt;
    element('expires').value = terms.expiresAt ? dayText(new Date((terms.expiresAt - 1) * 1000)) : '';
    element('limit').value = terms.maxDownloads === null ? '' : String(terms.maxDownloads);
    this.#showBtc();
  }

  #priceTrouble(priceSat) {
    if (priceSat === null) return say('js_upload_price_wrong');
    if (priceSat > 0 && priceSat < this.#floorSat) return say('js_upload_price_floor', { floor: sat(this.#floorSat) });
    return null;
  }

  #confirmationsTrouble(keyAt, priceSat) {
    if (keyAt === null) return say('js_upload_confirmations_wrong');
    if (keyAt > 0 || priceSat === null || priceSat <= this.#unconfirmedSatMax) return null;
    return say('js_upload_confirmations_needed', { sat: sat(this.#unconfirmedSatMax) });
  }

  #showBtc() {
    const priceSat = whole(element('price').value.replace(/\s/g, ''), 0, SAT_MAX);
    let text = '';
    if (priceSat === 0) text = say('js_upload_free');
    else if (priceSat !== null) text = say('js_upload_btc', { btc: btc(priceSat) });
    element('price-btc').textContent = text;
  }

  async #takePreview() {
    const [file] = element('preview').files;
    if (!file) return;
    try {
      this.#setPreview(await previewOf(file));
      complain('preview', null);
    } catch {
      this.#setPreview(null);
      complain('preview', say('js_upload_preview_wrong'));
    }
  }

  #setPreview(preview) {
    const image = element('preview-image');
    URL.revokeObjectURL(image.src);
    this.#preview = preview;
    element('preview').value = '';
    show(element('preview-shown'), preview !== null);
    if (!preview) return;
    image.src = URL.createObjectURL(new Blob([preview.image], { type: preview.mediaType }));
    element('preview-size').textContent = say('js_upload_preview_size', { size: size(preview.image.length) });
  }
}

// null unless `text` is digits and within the bounds.
function whole(text, least, most) {
  const number = /^\d{1,16}$/.test(text) ? Number(text) : NaN;
  return number >= least && number <= most ? number : null;
}

function textTrouble(text, bytesMax, tooLong) {
  if (REFUSED_IN_TEXT.test(text)) return say('js_upload_text_control');
  return utf8(text).length > bytesMax ? say(tooLong) : null;
}

function complain(name, why) {
  const field = element(name);
  const said = show(element(`${name}-wrong`), Boolean(why));
  said.textContent = why ?? '';
  const hints = (field.getAttribute('aria-describedby') ?? '').split(' ').filter((id) => id && id !== said.id);
  if (why) hints.push(said.id);
  setOrRemove(field, 'aria-invalid', why ? 'true' : '');
  setOrRemove(field, 'aria-describedby', hints.join(' '));
}

function setOrRemove(field, name, text) {
  if (text) field.setAttribute(name, text);
  else field.removeAttribute(name);
}

// Whole satoshi in BTC: no rounding on the way.
function btc(amountSat) {
  const digits = String(amountSat).padStart(9, '0');
  return `${digits.slice(0, -8)}.${digits.slice(-8)}`;
}

// Unix seconds at which the day is over where the seller is; NaN for no day.
function endOfDay(text) {
  const [year, month, day] = text.split('-').map(Number);
  return Math.floor(new Date(year, month - 1, day + 1).getTime() / 1000);
}

function dayText(date) {
  const two = (number) => String(number).padStart(2, '0');
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}
