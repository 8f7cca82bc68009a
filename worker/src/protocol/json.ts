/** A strict JSON parser: UTF-8, no lone surrogates, bounded depth, no loss of numbers. */

const MAX_DEPTH = 200;

const QUOTE = 34;
const BACKSLASH = 92;

export class JsonError extends Error {}

/**
 * Parse a JSON text.
 *
 * An integer that a double cannot represent keeps its digits, because it is only passed through.
 *
 * @throws JsonError the text is not valid JSON.
 */
export function parseJson(content: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content);
  } catch {
    throw new JsonError("it is not UTF-8");
  }
  checkDepth(text);
  try {
    const value = parseStored(text);
    if (/\\u[dD][89a-fA-F]/.test(text) && hasLoneSurrogate(JSON.stringify(value))) {
      throw new JsonError("it contains a lone surrogate, which is not Unicode text");
    }
    return value;
  } catch (error) {
    if (error instanceof JsonError) throw error;
    throw new JsonError("it is not JSON"); // the engine's message would repeat the content
  }
}

/** Parse JSON that was validated before. No number loses digits. */
export function parseStored(text: string): unknown {
  // Use the slow path only if there may be a number that a double cannot represent.
  return /[0-9]{16}|[eE]\+?[0-9]{3}/.test(text) ? JSON.parse(text, keepNumber) : JSON.parse(text);
}

/** Check the depth before parsing, so that no text causes deep recursion, in the parser or in JSON.stringify. */
function checkDepth(text: string): void {
  let depth = 0;
  let inText = false;
  for (let place = 0; place < text.length; place++) {
    const code = text.charCodeAt(place);
    if (inText) {
      if (code === BACKSLASH) place++;
      else if (code === QUOTE) inText = false;
    } else if (code === QUOTE) {
      inText = true;
    } else if (code === 91 || code === 123) {
      if (++depth > MAX_DEPTH) throw new JsonError(`it has more than ${MAX_DEPTH} levels`);
    } else if (code === 93 || code === 125) {
      depth--;
    }
  }
}

// Not in the types of TypeScript yet: the TC39 proposal "JSON.parse source text access".
const { rawJSON } = JSON as unknown as { rawJSON(text: string): unknown };

function keepNumber(_: string, value: unknown, context?: { source?: string }): unknown {
  if (typeof value !== "number" || Number.isSafeInteger(value)) return value;
  if (!Number.isFinite(value)) throw new JsonError("a number is too large");
  const source = context?.source;
  return source !== undefined && /^-?[0-9]+$/.test(source) ? rawJSON(source) : value;
}

/** Whether the output of `JSON.stringify` contains a lone surrogate: only those are escaped. */
function hasLoneSurrogate(written: string): boolean {
  return /(?:^|[^\\])(?:\\\\)*\\ud[89a-f]/.test(written);
}
