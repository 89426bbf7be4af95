/** From tokens to text: the `decoder` steps. */

import { cellsOf, type CharacterClass, codePoints, textOf } from "./cells";
import { replaceStep } from "./normalize";
import type { DecoderStep } from "./spec";
import { BYTE_CHARACTERS, bytesOf } from "./split";

export type Decode = (texts: string[]) => string[];

const BYTE_OF = new Map(BYTE_CHARACTERS.map((c, byte) => [c, byte]));

export function decoderStep(step: DecoderStep, classes: ReadonlyMap<string, CharacterClass>): Decode {
  switch (step.type) {
    case "byte_level":
      return (texts) => [lenient(texts.flatMap(bytesBehind))];
    case "wordpiece":
      return (texts) =>
        texts.map((text, at) => {
          const continues = at > 0 && text.startsWith(step.prefix);
          const spaced = at === 0 ? text : continues ? text.slice(step.prefix.length) : ` ${text}`;
          return step.cleanup ? replaced(spaced, WORDPIECE_CLEANUP) : spaced;
        });
    case "bpe":
      return (texts) => texts.map((text, at) => text.replaceAll(step.suffix, at === texts.length - 1 ? "" : " "));
    case "metaspace":
      return (texts) => texts.map((text, at) => text.replaceAll(step.replacement, at === 0 && step.strip ? "" : " "));
    case "replace": {
      const replace = replaceStep(step, classes);
      return (texts) => texts.map((text) => textOf(replace(cellsOf(text))));
    }
    case "byte_fallback":
      return byteFallback;
    case "fuse":
      return (texts) => [texts.join("")];
    case "strip":
      return (texts) => texts.map((text) => stripped(codePoints(text), step));
  }
}

/** The replacements of `cleanup` in a finished text. */
export const cleanedUp = (text: string): string => replaced(text, CLEANUP);

type Replacements = readonly (readonly [string, string])[];

const BEFORE: Replacements = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
];
const BEHIND: Replacements = [
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];
const CLEANUP: Replacements = [...BEFORE, ...BEHIND];
const WORDPIECE_CLEANUP: Replacements = [...BEFORE, [" do not", " don't"], ...BEHIND];

function replaced(text: string, replacements: Replacements): string {
  return replacements.reduce((done, [spaced, tight]) => done.replaceAll(spaced, tight), text);
}

function bytesBehind(token: string): number[] {
  const bytes = [...token].map((c) => BYTE_OF.get(c));
  return bytes.every((byte) => byte !== undefined) ? (bytes as number[]) : bytesOf(token);
}

function lenient(bytes: number[]): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
}

/** The text of bytes; U+FFFD for each of them when they are not UTF-8. */
function strict(bytes: number[]): string[] {
  try {
    return [new TextDecoder("utf-8", { ignoreBOM: true, fatal: true }).decode(Uint8Array.from(bytes))];
  } catch {
    return bytes.map(() => "\ufffd");
  }
}

function byteFallback(texts: string[]): string[] {
  const out: string[] = [];
  let bytes: number[] = [];
  const flush = () => {
    if (bytes.length > 0) out.push(...strict(bytes));
    bytes = [];
  };
  for (const text of texts) {
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(text);
    if (byte) bytes.push(parseInt(byte[1]!, 16));
    else {
      flush();
      out.push(text);
    }
  }
  flush();
  return out;
}

function stripped(text: string[], step: { content: string; start: number; stop: number }): string {
  let start = 0;
  let end = text.length;
  while (start < Math.min(step.start, text.length) && text[start] === step.content) start++;
  while (end > start && text.length - end < step.stop && text[end - 1] === step.content) end--;
  return text.slice(start, end).join("");
}
