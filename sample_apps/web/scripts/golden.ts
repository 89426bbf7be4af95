/**
 * Hold the reader to the golden vectors of tokenizer folders: `node build/golden.mjs FOLDER...`
 *
 * Prints a JSON object a folder on a line of its own: `{folder, vectors, passed, differences}`, or `{folder, refused}`.
 */

import { readFileSync } from "node:fs";
import { differences, readGolden } from "../src/tokenizer/golden";
import { Tokenizer } from "../src/tokenizer/tokenizer";

for (const folder of process.argv.slice(2)) {
  let answer: object;
  try {
    const tokenizer = new Tokenizer(JSON.parse(readFileSync(`${folder}/tokenizer_spec.json`, "utf8")));
    const cases = readGolden(readFileSync(`${folder}/golden.jsonl`, "utf8"));
    const wrong = differences(tokenizer, cases);
    answer = { folder, vectors: cases.length, passed: cases.length - wrong.length, differences: wrong.slice(0, 20) };
  } catch (error) {
    answer = { folder, refused: (error as Error).message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
