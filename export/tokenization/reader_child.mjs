// Run @huggingface/tokenizers on a tokenizer folder: node reader_child.mjs PACKAGE FOLDER < texts.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [, , place, folder] = process.argv;
const about = JSON.parse(readFileSync(`${place}/package.json`, "utf8"));
const entry = createRequire(`${place}/package.json`).resolve(place);
const answer = { version: about.version };
try {
  const { Tokenizer } = await import(pathToFileURL(entry));
  const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, "utf8"));
  const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
  answer.ids = JSON.parse(readFileSync(0, "utf8")).map((text) => {
    try {
      return Array.from(tokenizer.encode(text).ids);
    } catch {
      return null;
    }
  });
} catch (error) {
  answer.refused = String(error);
}
process.stdout.write(JSON.stringify(answer));
