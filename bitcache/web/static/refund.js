// Asking for money back, on the page of a payment. The server writes how it stands and what can be asked for; the
// receipt's secret, which it never sees otherwise, goes with the question alone.

import { ApiProblem, call } from './api.js';
import { encode } from './base64url.js';
import { element, show } from './page.js';
import { say } from './words.js';

const WORDS = {
  'refund-address-invalid': 'js_refund_address',
  'refund-address-final': 'js_refund_final',
  'nothing-owed': 'js_refund_nothing',
  'claim-refused': 'js_receipt_wrong',
  'invalid-value': 'js_refund_address',
};

let asker = null;

// From now on the form is there whenever the server offers it. `onAsked()` once the money was asked for.
export function offerRefund(receipt, onAsked) {
  asker = { receipt, onAsked };
  dress();
}

// Puts the part of a newer page in place; what somebody is typing stays.
export function swapRefund(page) {
  const section = element('refund');
  const next = page.getElementById('refund');
  show(section, !next.hidden);
  const state = element('refund-state');
  const news = page.getElementById('refund-state');
  if (state.textContent !== news.textContent) state.replaceChildren(...news.childNodes);
  const form = element('refund-form');
  const offered = page.getElementById('refund-form');
  if (form && offered && form.dataset.amount === offered.dataset.amount) return;
  const typed = element('refund-address')?.value;
  if (form?.contains(document.activeElement)) element('refund-title').focus();
  form?.remove();
  if (!offered) return;
  section.append(offered);
  if (typed && !element('refund-address').readOnly) element('refund-address').value = typed;
  dress();
}

function dress() {
  const form = element('refund-form');
  if (!form || !asker) return;
  show(form).onsubmit = (event) => {
    event.preventDefault();
    ask(form);
  };
}

async function ask(form) {
  const button = form.querySelector('button');
  const field = element('refund-address');
  const body = { claim_secret: encode(asker.receipt.claimSecret), address: field.value.trim() };
  button.disabled = true;
  tell('', field);
  try {
    await call('POST', `/invoices/${asker.receipt.invoiceId}/refund`, { body });
    await asker.onAsked();
  } catch (error) {
    const key = error instanceof ApiProblem ? WORDS[error.name] : null;
    tell(say(key ?? 'js_refund_again'), field);
  }
  button.disabled = false;
}

function tell(words, field) {
  element('refund-wrong').textContent = words;
  if (words) field.setAttribute('aria-invalid', 'true');
  else field.removeAttribute('aria-invalid');
}
