/** Offsets and lengths in Unicode code points. The strings of JavaScript count in UTF-16 code units. */

const LOW_SURROGATES = /[\uDC00-\uDFFF]/g;

/** Return the number of code points of a text without lone surrogates. */
export function lengthOf(text: string): number {
  return text.length - (text.match(LOW_SURROGATES)?.length ?? 0);
}

/** Return the part of a text between two offsets in code points. */
export function sliceOf(text: string, start: number, end: number): string {
  const from = unitOffset(text, 0, start);
  return text.slice(from, unitOffset(text, from, end - start));
}

/** Return the offset in code units that is a number of code points after another one. */
function unitOffset(text: string, from: number, points: number): number {
  let at = from;
  for (let left = points; left > 0 && at < text.length; left--) {
    at += isHighSurrogate(text.charCodeAt(at)) ? 2 : 1;
  }
  return at;
}

function isHighSurrogate(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}
