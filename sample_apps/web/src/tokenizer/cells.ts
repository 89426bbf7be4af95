/**
 * Text as the specification sees it: code points, each with the range of the given text that it came from.
 *
 * The reader in this folder is written from docs/tokenizer-spec.md alone.
 */

/** One character as it is now, and where in the text as it was given it came from, in code points. */
export interface Cell {
  readonly c: string;
  readonly from: number;
  readonly to: number;
}

/** The code points of a text, half surrogates replaced by U+FFFD. */
export function codePoints(text: string): string[] {
  const out: string[] = [];
  for (const c of text) out.push(c.length === 1 && c >= "\ud800" && c <= "\udfff" ? "\ufffd" : c);
  return out;
}

export function cellsOf(text: string): Cell[] {
  return codePoints(text).map((c, at) => ({ c, from: at, to: at + 1 }));
}

export function textOf(cells: readonly Cell[]): string {
  let text = "";
  for (const cell of cells) text += cell.c;
  return text;
}

/** A new character with its number: 1 is new; 0 stands for the next old one; -n for that and n more, dropped. */
export type Change = [character: string, number: number];

/** Cells of the characters that `changes` describe. */
export function changed(cells: readonly Cell[], changes: readonly Change[]): Cell[] {
  const out: Cell[] = [];
  let at = 0;
  for (const [c, number] of changes) {
    if (number > 0) {
      const before = at > 0 ? cells[at - 1]! : { from: 0, to: 0 };
      out.push({ c, from: before.from, to: before.to });
    } else {
      const old = cells[at]!;
      out.push({ c, from: old.from, to: old.to });
      at += 1 - number;
    }
  }
  return out;
}

/** A set of characters. */
export type CharacterClass = (character: string) => boolean;

/** The set that ranges `[first, last]` of code points make. */
export function characterClass(ranges: readonly (readonly [number, number])[]): CharacterClass {
  const sorted = [...ranges].sort((a, b) => a[0] - b[0]);
  const firsts = sorted.map((range) => range[0]);
  const lasts: number[] = [];
  for (const [, last] of sorted) lasts.push(Math.max(last, lasts.at(-1) ?? 0)); // ranges may overlap
  return (character) => {
    const point = character.codePointAt(0)!;
    let low = 0;
    let high = firsts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (firsts[middle]! <= point) low = middle + 1;
      else high = middle;
    }
    return low > 0 && lasts[low - 1]! >= point;
  };
}
