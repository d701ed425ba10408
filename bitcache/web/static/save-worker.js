// Work for which the page would have to wait, and a file that only a worker may write: see prefetch.js and save.js.

import { carryOut } from './errand.js';
import { fetchAhead } from './fetch-ahead.js';
import { saveInPrivateFile } from './private-file.js';

const WORK = { save: saveInPrivateFile, prefetch: fetchAhead };

self.addEventListener('message', (event) => {
  const { type, job } = event.data;
  carryOut(event.ports[0], (told) => WORK[type](job, told));
});
