/** The Unicode normalisation forms as changes of single characters, which `String.normalize` does not tell. */

import { type Cell, type Change, textOf } from "./cells";

export type Form = "nfc" | "nfd" | "nfkc" | "nfkd";

/** What a normalisation form makes of some cells. */
export function unicodeForm(cells: readonly Cell[], form: Form): Change[] {
  const text = textOf(cells);
  if (text.normalize(form.toUpperCase()) === text) return cells.map((cell) => [cell.c, 0]);
  const parts = decomposed(cells, form.includes("k") ? "NFKD" : "NFD");
  return form.endsWith("d") ? parts : composed(parts);
}

function decomposed(cells: readonly Cell[], form: "NFD" | "NFKD"): Change[] {
  const parts: Change[] = [];
  for (const cell of cells) {
    [...cell.c.normalize(form)].forEach((c, at) => {
      // Canonical order: a mark moves before those marks, back to the starter, whose class is greater.
      let place = parts.length;
      while (place > 0 && swaps(parts[place - 1]![0], c)) place--;
      parts.splice(place, 0, [c, at > 0 ? 1 : 0]);
    });
  }
  return parts;
}

function composed(parts: readonly Change[]): Change[] {
  const out: Change[] = [];
  let starter = -1;
  for (const [c, number] of parts) {
    const mark = isMark(c);
    const free = starter === out.length - 1 || (mark && swaps(c, out.at(-1)![0]));
    if (starter >= 0 && free) {
      const joined = (out[starter]![0] + c).normalize("NFC");
      if ([...joined].length === 1) {
        out[starter] = [joined, out[starter]![1] + number - 1];
        continue;
      }
    }
    out.push([c, number]);
    if (!mark) starter = out.length - 1;
  }
  return out;
}

// JavaScript does not tell combining classes, but its normalisation puts two marks in their order.
/** Whether both are marks, the first of a greater combining class than the second. */
function swaps(first: string, second: string): boolean {
  return second > "\u02ff" && first > "\u02ff" && (first + second).normalize("NFD") === second + first && first !== second;
}

/** Whether the combining class is not 0: then it goes before a mark of the last class, or behind one of the first. */
function isMark(c: string): boolean {
  return c > "\u02ff" && (swaps(c, "\u0334") || swaps("\u0345", c));
}
