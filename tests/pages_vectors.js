// Every vector of the format, given to the scripts of the pages, in the page it is evaluated in.
// Returns for each case {expect, chunkIndex}: 'ok', the kind of failure, or what was wrong with the result.
async (cases) => {
  const load = (name) => import(`/static/${name}.js`);
  const [base64url, content, digests, keys, metadata, paths] = await Promise.all(
    ['base64url', 'content', 'digests', 'keys', 'metadata', 'paths'].map(load),
  );

  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  const sha256 = async (bytes) => hex(new Uint8Array(await crypto.subtle.digest('SHA-256', bytes)));
  const plaintextOf = (vector) => new Uint8Array(vector.plaintext_bytes).map((_, at) => at % 251);

  function equal(actual, expected) {
    if (JSON.stringify(actual) !== JSON.stringify(expected)) throw new Error(`${actual} is not ${expected}`);
  }

  function join(chunks) {
    const whole = new Uint8Array(chunks.reduce((length, chunk) => length + chunk.length, 0));
    let at = 0;
    for (const chunk of chunks) {
      whole.set(chunk, at);
      at += chunk.length;
    }
    return whole;
  }

  function cut(ciphertext) {
    const count = Math.max(1, Math.ceil(ciphertext.length / content.CHUNK_BYTES));
    return Array.from({ length: count }, (_, index) =>
      ciphertext.subarray(index * content.CHUNK_BYTES, (index + 1) * content.CHUNK_BYTES),
    );
  }

  async function sealed(vector) {
    const plaintext = plaintextOf(vector);
    const cipher = await content.ContentCipher.create(unhex(vector.file_key), unhex(vector.header));
    const count = content.chunkCount(plaintext.length);
    const chunks = [];
    for (let index = 0; index < count; index += 1) {
      const { start, end } = content.chunkPlaintext(index, plaintext.length);
      chunks.push(await cipher.seal(index, index === count - 1, plaintext.subarray(start, end)));
    }
    equal(join(chunks).length, content.ciphertextSize(plaintext.length));
    return chunks;
  }

  async function opened(fileKey, ciphertext) {
    const header = ciphertext.slice(0, content.HEADER_BYTES);
    // A file that is shorter has no header to make a cipher with.
    const whole = header.length === content.HEADER_BYTES ? header : content.newHeader();
    const cipher = await content.ContentCipher.create(unhex(fileKey), whole);
    const chunks = cut(ciphertext);
    const pieces = [];
    for (const [index, chunk] of chunks.entries()) {
      pieces.push(await cipher.open(index, index === chunks.length - 1, chunk));
    }
    return join(pieces);
  }

  function damaged(chunks, [what, one, other]) {
    if (what === 'swap') {
      const swapped = [...chunks];
      [swapped[one], swapped[other]] = [chunks[other], chunks[one]];
      return join(swapped);
    }
    const ciphertext = join(chunks);
    if (what === 'cut') return ciphertext.slice(0, one);
    if (what === 'append') return join([ciphertext, unhex(one)]);
    if (what === 'flip') {
      ciphertext[one] ^= 1;
      return ciphertext;
    }
    throw new Error(`unknown damage ${what}`);
  }

  // One description is one document: written anew it must be the same bytes.
  async function checkMetadata(vector) {
    const key = await keys.metadataKey(unhex(vector.link_secret));
    const described = await metadata.openMetadata(key, base64url.decode(vector.sealed));
    const sorted = (value) => {
      if (value === null || typeof value !== 'object') return value;
      if (Array.isArray(value)) return value.map(sorted);
      return Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])]));
    };
    equal(metadata.documentText(described), JSON.stringify(sorted(vector.document)));
  }

  const checks = {
    parcel_key: async (vector) =>
      equal(hex(await keys.parcelKey(unhex(vector.link_secret), unhex(vector.release_secret))), vector.parcel_key),
    metadata_key: async (vector) => equal(hex(await keys.metadataKey(unhex(vector.link_secret))), vector.metadata_key),
    prove: (vector) =>
      keys.provenParcelKey(unhex(vector.link_secret), unhex(vector.release_secret), {
        releaseCommitment: unhex(vector.release_commitment),
        keyCheck: unhex(vector.key_check),
      }),
    unwrap: async (vector) => {
      const [parcelKey, wrapped, header] = [vector.parcel_key, vector.wrapped, vector.header].map(unhex);
      equal(hex(await keys.unwrapFileKey(parcelKey, wrapped, header)), vector.file_key);
    },
    size: (vector) => {
      equal(content.plaintextSize(vector.ciphertext_bytes), vector.plaintext_bytes);
      equal(content.ciphertextSize(vector.plaintext_bytes), vector.ciphertext_bytes);
    },
    content: async (vector) => {
      const chunks = await sealed(vector);
      const ciphertext = join(chunks);
      equal(await sha256(ciphertext), vector.ciphertext_sha256);
      equal(hex(await digests.rootOf(join(await Promise.all(chunks.map(digests.chunkDigest))))), vector.root);
      if (vector.ciphertext) equal(hex(ciphertext), vector.ciphertext);
      equal(await sha256(await opened(vector.file_key, ciphertext)), await sha256(plaintextOf(vector)));
    },
    damage: async (vector) => opened(vector.file_key, damaged(await sealed(vector), vector.damage)),
    open: (vector) => opened(vector.file_key, unhex(vector.ciphertext)),
    metadata: checkMetadata,
    paths: (vector) => equal(paths.checkPaths(vector.paths), vector.normal),
    base64url: (vector) => {
      equal(hex(base64url.decode(vector.text)), vector.bytes);
      equal(base64url.encode(unhex(vector.bytes)), vector.text);
    },
  };

  const results = [];
  for (const vector of cases) {
    try {
      await checks[vector.kind](vector);
      results.push({ expect: 'ok' });
    } catch (failure) {
      results.push({ expect: failure.kind ?? String(failure), chunkIndex: failure.chunkIndex });
    }
  }
  return results;
}
