/** Matchers: where in some cells a literal, a character of a class, or a regular expression is. */

import { BundleError } from "../errors";
import { type Cell, type CharacterClass, codePoints, textOf } from "./cells";
import type { Match } from "./spec";

/** `[start, end)` in cells; `kept` is where group 1 ends, `start` without one. */
export interface Hit {
  start: number;
  end: number;
  kept: number;
}

export type Matcher = (cells: readonly Cell[]) => Hit[];

/** The class of a name. Throws BundleError when the file has none. */
export function classNamed(classes: ReadonlyMap<string, CharacterClass>, name: string): CharacterClass {
  const found = classes.get(name);
  if (found === undefined) throw new BundleError(`tokenizer_spec.json names the class "${name}" and has none such.`);
  return found;
}

/** A function that finds what `match` describes, from left to right without overlap. */
export function matcher(match: Match, classes: ReadonlyMap<string, CharacterClass>): Matcher {
  if ("literal" in match) return literalMatcher(codePoints(match.literal));
  if ("class" in match) {
    const inside = classNamed(classes, match.class);
    return (cells) => {
      const hits: Hit[] = [];
      for (let at = 0; at < cells.length; at++) {
        if (inside(cells[at]!.c)) hits.push({ start: at, end: at + 1, kept: at });
      }
      return hits;
    };
  }
  return regexMatcher(match.regex);
}

export function literalMatcher(literal: readonly string[]): Matcher {
  return (cells) => {
    const hits: Hit[] = [];
    for (let at = 0; at + literal.length <= cells.length; ) {
      if (literal.every((c, i) => cells[at + i]!.c === c)) {
        hits.push({ start: at, end: at + literal.length, kept: at });
        at += literal.length;
      } else at += 1;
    }
    return hits;
  };
}

function regexMatcher(pattern: string): Matcher {
  let regex: RegExp;
  try {
    regex = new RegExp(pattern, "gu");
  } catch (error) {
    throw new BundleError(`This browser cannot read a pattern of tokenizer_spec.json: ${(error as Error).message}.`);
  }
  return (cells) => {
    const hits: Hit[] = [];
    const positions = cellPositions(cells);
    let last = -1;
    for (const found of textOf(cells).matchAll(regex)) {
      const start = positions[found.index]!;
      const end = positions[found.index + found[0].length]!;
      if (start === end && start === last) continue; // an empty match right behind the previous one does not count
      hits.push({ start, end, kept: positions[found.index + (found[1]?.length ?? 0)]! });
      last = end;
    }
    return hits;
  };
}

/** For each position in UTF-16 units of the cells' text the cell there. */
function cellPositions(cells: readonly Cell[]): number[] {
  const positions: number[] = [];
  cells.forEach((cell, at) => {
    for (let unit = 0; unit < cell.c.length; unit++) positions.push(at);
  });
  positions.push(cells.length);
  return positions;
}
