/** Added tokens: found in a text before anything else is done to it. */

import type { Cell, CharacterClass } from "./cells";
import type { AddedToken } from "./spec";

/** A part of a text: an added token, or what lies between two. */
export interface Part {
  cells: Cell[];
  token: AddedToken | null;
}

export type Finder = (cells: Cell[]) => Part[];

/** Finds tokens by their names, leftmost first, of those the longest. */
export function finder(
  names: readonly (readonly [name: string[], token: AddedToken])[],
  isSpace: CharacterClass,
  isWord: CharacterClass,
): Finder {
  const byFirst = new Map<string, [string[], AddedToken][]>();
  for (const [name, token] of names) {
    if (name.length === 0) continue;
    const others = byFirst.get(name[0]!) ?? [];
    byFirst.set(name[0]!, [...others.filter(([other]) => other.join("") !== name.join("")), [name, token]]);
  }
  for (const entries of byFirst.values()) entries.sort((a, b) => b[0].length - a[0].length);

  return (cells) => {
    const parts: Part[] = [];
    let done = 0;
    for (let at = 0; at < cells.length; ) {
      const found = byFirst.get(cells[at]!.c)?.find(([name]) => name.every((c, i) => cells[at + i]?.c === c));
      if (found === undefined) {
        at++;
        continue;
      }
      const [name, token] = found;
      let start = at;
      let end = at + name.length;
      at = end;
      const inWord = (cell: Cell | undefined) => cell !== undefined && isWord(cell.c);
      if (token.single_word && (inWord(cells[start - 1]) || inWord(cells[end]))) continue;
      if (token.lstrip) while (start > done && isSpace(cells[start - 1]!.c)) start--;
      if (token.rstrip) while (end < cells.length && isSpace(cells[end]!.c)) end++;
      if (start > done) parts.push({ cells: cells.slice(done, start), token: null });
      parts.push({ cells: cells.slice(start, end), token });
      done = end;
    }
    if (done < cells.length) parts.push({ cells: cells.slice(done), token: null });
    return parts;
  };
}
