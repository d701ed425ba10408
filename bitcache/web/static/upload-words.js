// Why an upload stopped, as a sentence that says what to do.

import { say } from './words.js';

// `why` is {name, status, detail, field, path} as upload-worker tells it.
export function whyStopped({ name, status, detail, field, path }) {
  switch (name) {
    case 'account-full':
      return say('js_upload_e_account_full');
    case 'source-unreadable':
      return say('js_upload_e_changed', { path });
    case 'source-changing':
      return say('js_upload_e_changing', { path });
    case 'elsewhere':
      return say('js_upload_elsewhere');
    case 'metadata-invalid':
    case 'metadata-too-large':
      return say('js_upload_e_description');
    case 'not-found':
      return say('js_upload_e_gone');
    case 'invalid-value':
      return say('js_upload_e_refused', { detail: detail || field });
    default:
      return status === 401 ? say('js_upload_e_signed_out') : say('js_upload_e_other', { detail: detail || name });
  }
}
