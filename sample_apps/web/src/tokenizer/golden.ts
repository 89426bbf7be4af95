/** Golden vectors of a bundle, `tokenizer/golden.jsonl`, compared with what this reader makes of the same texts. */

import type { Encoding, Tokenizer, Truncation } from "./tokenizer";
import { codePoints } from "./cells";
import type { Side } from "./spec";

export interface GoldenCase {
  name: string;
  text: string;
  text_pair: string | null;
  add_special_tokens: boolean;
  truncation: Truncation | null;
  padding: { length: number; side: Side } | null;
  ids: number[];
  attention_mask: number[];
  type_ids: number[];
  special_tokens_mask: number[];
  offsets: [number, number][];
  offsets_utf16: [number, number][];
  decoded: string;
  decoded_without_special: string;
}

export function readGolden(text: string): GoldenCase[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as GoldenCase);
}

/** The vectors that the reader does not give, each with the first field that differs. */
export function differences(tokenizer: Tokenizer, cases: readonly GoldenCase[]): string[] {
  const out: string[] = [];
  for (const golden of cases) {
    const problem = difference(tokenizer, golden);
    if (problem !== null) out.push(`${golden.name}, ${problem}`);
  }
  return out;
}

function difference(tokenizer: Tokenizer, golden: GoldenCase): string | null {
  const found = tokenizer.encode(golden.text, {
    pair: golden.text_pair,
    addSpecialTokens: golden.add_special_tokens,
    truncation: golden.truncation,
    padding: golden.padding,
  });
  const { sequences: _, ...fields } = found;
  const all = {
    ...fields,
    offsets_utf16: utf16Offsets(found, golden.text, golden.text_pair ?? ""),
    decoded: tokenizer.decode(golden.ids),
    decoded_without_special: tokenizer.decode(golden.ids, true),
  };
  for (const [name, value] of Object.entries(all)) {
    const expected = JSON.stringify(golden[name as keyof typeof all]);
    if (JSON.stringify(value) !== expected) return `${name}: ${JSON.stringify(value)} is not ${expected}`;
  }
  return null;
}

/** Offsets in UTF-16 units, as strings of JavaScript count. */
export function utf16Offsets(encoding: Encoding, text: string, pair: string): [number, number][] {
  const tables = [text, pair].map((part) => {
    const table = [0];
    for (const c of codePoints(part)) table.push(table.at(-1)! + c.length);
    return table;
  });
  return encoding.offsets.map(([start, end], at) => {
    const sequence = encoding.sequences[at] ?? null;
    return sequence === null ? [0, 0] : [tables[sequence]![start]!, tables[sequence]![end]!];
  });
}
