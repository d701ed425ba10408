// Follows an invoice: server-sent events, or polling where streams do not pass. Every event is the whole state.

import { call } from './api.js';

const POLL_MS = 5_000;

// Calls `onInvoice(view)` with the state now and after each change; `onLine(false)` when the line is lost and
// `onLine(true)` when it is back. For as long as the page lives.
export function follow(invoiceId, { onInvoice, onLine }) {
  const place = `/invoices/${invoiceId}`;

  const heard = (view) => {
    onLine(true);
    onInvoice(view);
  };

  async function poll() {
    try {
      heard(await call('GET', place));
    } catch {
      onLine(false);
    }
  }

  function listen() {
    const stream = new EventSource(`/api/v1${place}/events`);
    stream.addEventListener('invoice', (event) => heard(JSON.parse(event.data)));
    stream.onerror = () => {
      onLine(false);
      // The browser tries again by itself, unless the server refused: it has too many listeners.
      if (stream.readyState === EventSource.CLOSED) setInterval(poll, POLL_MS);
    };
  }

  listen();
  // A phone that slept may hold a dead line for long.
  document.addEventListener('visibilitychange', () => document.hidden || poll());
  addEventListener('online', poll);
}
