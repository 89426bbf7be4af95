/** The `normalizer` steps. Each becomes a function from cells to cells, made when the file is opened. */

import { type Cell, type Change, type CharacterClass, changed, codePoints } from "./cells";
import { Charsmap } from "./charsmap";
import { classNamed, matcher } from "./match";
import type { NormalizerStep, Replace } from "./spec";
import { type Form, unicodeForm } from "./unicode";

export type Step = (cells: Cell[]) => Cell[];
type Classes = ReadonlyMap<string, CharacterClass>;

export function normalizerStep(step: NormalizerStep, classes: Classes): Step {
  switch (step.type) {
    case "nfc":
    case "nfd":
    case "nfkc":
    case "nfkd":
      return (cells) => changed(cells, unicodeForm(cells, step.type as Form));
    case "lowercase":
      return (cells) =>
        changed(
          cells,
          cells.flatMap((cell) => [...cell.c.toLowerCase()].map((c, at): Change => [c, at > 0 ? 1 : 0])),
        );
    case "replace":
      return replaceStep(step, classes);
    case "surround": {
      const find = matcher(step.match, classes);
      const around = codePoints(step.content);
      return (cells) => {
        const out: Cell[] = [];
        let done = 0;
        for (const { start, end } of find(cells)) {
          out.push(...cells.slice(done, start));
          if (start < end) {
            const range = { from: cells[start]!.from, to: cells[end - 1]!.to };
            const content = around.map((c) => ({ c, ...range }));
            out.push(...content, ...cells.slice(start, end), ...content);
          }
          done = end;
        }
        return done === 0 ? cells : [...out, ...cells.slice(done)];
      };
    }
    case "strip": {
      const isSpace = classNamed(classes, "whitespace");
      return (cells) => {
        let start = 0;
        let end = cells.length;
        if (step.left) while (start < end && isSpace(cells[start]!.c)) start++;
        if (step.right) while (end > start && isSpace(cells[end - 1]!.c)) end--;
        return cells.slice(start, end);
      };
    }
    case "prepend": {
      const content = codePoints(step.content);
      return (cells) => (cells.length > 0 ? [...content.map((c) => ({ ...cells[0]!, c })), ...cells] : cells);
    }
    case "precompiled": {
      const map = new Charsmap(step.charsmap, classNamed(classes, "extenders"), classNamed(classes, "controls"));
      return (cells) => changed(cells, map.changes(cells));
    }
  }
}

/** Also used on the way out, where ranges mean nothing. */
export function replaceStep(step: Replace, classes: Classes): Step {
  const find = matcher(step.match, classes);
  const content = codePoints(step.content);
  return (cells) => {
    const hits = find(cells);
    if (hits.length === 0) return cells;
    const out: Cell[] = [];
    let done = 0;
    for (const { start, end, kept } of hits) {
      for (let at = done; at < (step.keep ? kept : start); at++) out.push(cells[at]!);
      const range = end > 0 ? cells[end - 1]! : { from: 0, to: 0 };
      for (const c of content) out.push({ c, from: range.from, to: range.to });
      done = end;
    }
    for (let at = done; at < cells.length; at++) out.push(cells[at]!);
    return out;
  };
}
