// The picture that buyers see before they pay, made to fit: at most 256 KiB, PNG or JPEG.
//
// It is always drawn anew, so that what a camera writes into pictures (where, when, with what) stays private.

import { PREVIEW_BYTES_MAX } from './metadata.js';

const EDGE_MAX = 1600;
const EDGE_MIN = 64;
const SMALLER = 0.75;
const JPEG_QUALITY = 0.85;

// {mediaType, image: bytes}. Throws what the browser throws for a file that is no picture.
export async function previewOf(file) {
  const picture = await createImageBitmap(file);
  try {
    const longest = Math.max(picture.width, picture.height);
    for (let edge = Math.min(longest, EDGE_MAX); edge >= Math.min(longest, EDGE_MIN); edge *= SMALLER) {
      const drawn = await fitting(picture, edge / longest, file.type === 'image/png');
      if (drawn) return { mediaType: drawn.type, image: new Uint8Array(await drawn.arrayBuffer()) };
    }
    throw new RangeError('the picture does not get small enough');
  } finally {
    picture.close();
  }
}

// As a Blob, or null if it is too large at this scale.
async function fitting(picture, scale, sharp) {
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(picture.width * scale)),
    Math.max(1, Math.round(picture.height * scale)),
  );
  const pen = canvas.getContext('2d');
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (sharp) {
    const png = await canvas.convertToBlob({ type: 'image/png' });
    if (png.size <= PREVIEW_BYTES_MAX) return png;
  }
  // JPEG has no transparency: what shines through becomes white, not black.
  pen.globalCompositeOperation = 'destination-over';
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const jpeg = await canvas.convertToBlob({ type: 'image/jpeg', quality: JPEG_QUALITY });
  return jpeg.size <= PREVIEW_BYTES_MAX ? jpeg : null;
}
