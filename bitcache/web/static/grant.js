// The right to download what an invoice paid for: a token that lives some minutes and is claimed anew when refused.

import { call } from './api.js';

export class Grant {
  #claimed = null;

  // `claimSecret` is base64url, as receipts have it.
  constructor({ invoiceId, claimSecret }) {
    Object.assign(this, { invoiceId, claimSecret });
  }

  // Throws ApiProblem, 'claim-refused' and 'taken-down' among them. Repeating is up to the caller.
  async token(signal) {
    const claiming = (this.#claimed ??= this.#claim(signal));
    try {
      return await claiming;
    } catch (error) {
      // Whoever comes next asks again.
      if (this.#claimed === claiming) this.#claimed = null;
      throw error;
    }
  }

  // The server answered 401 to `token`: the next one is claimed.
  async refused(token) {
    if ((await this.#claimed?.catch(() => null)) === token) this.#claimed = null;
  }

  async #claim(signal) {
    const body = { claim_secret: this.claimSecret };
    return (await call('POST', `/invoices/${this.invoiceId}/claim`, { body, signal })).grant_token;
  }
}
