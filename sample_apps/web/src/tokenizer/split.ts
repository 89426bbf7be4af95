/** The `pre_tokenizer` steps. Each becomes a function from a piece to the pieces it is cut into. */

import { type Cell, type CharacterClass } from "./cells";
import { literalMatcher, type Matcher, matcher } from "./match";
import type { Behavior, PreTokenizerStep } from "./spec";

export type Split = (piece: Cell[]) => Cell[][];

export function splitStep(step: PreTokenizerStep, classes: ReadonlyMap<string, CharacterClass>): Split {
  switch (step.type) {
    case "split": {
      const find = matcher(step.match, classes);
      return (piece) => cutAt(piece, find, step.behavior, step.invert);
    }
    case "prepend_space":
      return (piece) => [piece[0]!.c === " " ? piece : [{ ...piece[0]!, c: " " }, ...piece]];
    case "bytes":
      return (piece) => [piece.flatMap((cell) => bytesOf(cell.c).map((byte) => ({ ...cell, c: BYTE_CHARACTERS[byte]! })))];
    case "metaspace": {
      const mark = step.replacement;
      const find = literalMatcher([...mark]);
      return (piece) => {
        let cells = piece.map((cell) => (cell.c === " " ? { ...cell, c: mark } : cell));
        const wanted = step.prepend_scheme === "always" || (step.prepend_scheme === "first" && cells[0]!.from === 0);
        if (wanted && cells[0]!.c !== mark) cells = [{ ...cells[0]!, c: mark }, ...cells];
        return step.split ? cutAt(cells, find, "merged_with_next", false) : [cells];
      };
    }
    case "fixed_length":
      return (piece) => {
        const out: Cell[][] = [];
        for (let at = 0; at < piece.length; at += step.length) out.push(piece.slice(at, at + step.length));
        return out;
      };
  }
}

const encoder = new TextEncoder();
export const bytesOf = (text: string): number[] => [...encoder.encode(text)];

/** The character that each byte is written as. */
export const BYTE_CHARACTERS: string[] = (() => {
  const own = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let other = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(own(byte) ? byte : other++));
})();

interface Span {
  start: number;
  end: number;
  hit: boolean;
}

function cutAt(cells: Cell[], find: Matcher, behavior: Behavior, invert: boolean): Cell[][] {
  const spans: Span[] = [];
  const add = (start: number, end: number, hit: boolean) => {
    if (start < end) spans.push({ start, end, hit: hit !== invert });
  };
  let done = 0;
  for (const { start, end } of find(cells)) {
    add(done, start, false);
    add(start, end, true);
    done = end;
  }
  add(done, cells.length, false);
  return joined(spans, behavior).map(({ start, end }) => cells.slice(start, end));
}

function joined(spans: Span[], behavior: Behavior): Span[] {
  if (behavior === "removed") return spans.filter((span) => !span.hit);
  if (behavior === "isolated") return spans;
  const out: Span[] = [];
  spans.forEach((span, at) => {
    const before = spans[at - 1];
    const joins =
      before !== undefined &&
      (behavior === "contiguous"
        ? before.hit === span.hit
        : behavior === "merged_with_previous"
          ? span.hit && !before.hit
          : before.hit && !span.hit);
    if (joins) out.at(-1)!.end = span.end;
    else out.push({ ...span });
  });
  return out;
}
