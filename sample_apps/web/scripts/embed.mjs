// Put bundles into a built page: node scripts/embed.mjs PAGE BUNDLE...
// Copies what the page reads, and lists the bundles with the page's own example texts in PAGE/bundles/index.json.
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(dirname(fileURLToPath(import.meta.url)));
const [page, ...folders] = process.argv.slice(2);
const out = join(resolve(page), "bundles");
const examples = JSON.parse(readFileSync(join(here, "examples.json"), "utf8"));
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
const bundles = folders.map((argument) => {
  const folder = resolve(argument);
  const path = basename(folder);
  const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
  const elsewhere = manifest.artifacts.filter(({ target }) => target !== "onnx").map((artifact) => artifact.path);
  const isOthers = (file) => elsewhere.some((place) => file === place || file.startsWith(`${place}/`));
  for (const file of ["manifest.json", ...manifest.files.map((entry) => entry.path).filter((name) => !isOthers(name))]) {
    cpSync(join(folder, file), join(out, path, file));
  }
  const kind = manifest.postprocess.output === "sentence_embedding" ? "sentence-similarity" : manifest.task;
  return { path, examples: examples[kind] ?? [] };
});
writeFileSync(join(out, "index.json"), `${JSON.stringify({ bundles }, null, 2)}\n`);
