/** A bundle, opened: every file that the app uses read and checked. */

import { BundleError } from "../errors";
import { Tokenizer } from "../tokenizer/tokenizer";
import type { Bytes, BundleFiles } from "./files";
import { type Artifact, type FileEntry, type Manifest, readManifest } from "./manifest";
import { onnxProperty } from "./onnx";

const TARGET = "onnx";
const IDENTITY = "palmtop.identity";

export interface Loading {
  /** Bytes that have come in, and how many there are. */
  loaded: number;
  total: number;
}

export interface Bundle {
  name: string;
  manifest: Manifest;
  artifact: Artifact;
  model: Bytes;
  /** Files with weights beside the model, under the names that it calls them by. */
  externalData: { path: string; data: Bytes }[];
  tokenizer: Tokenizer;
  /** Texts of the bundle's other files; empty where it has none. */
  card: string;
  golden: string;
  tokenizerGolden: string;
  /** How many files were read and matched their hash, and those that this app has no use for. */
  checked: number;
  unused: string[];
}

/** Read and check a bundle. Throws BundleError with what is wrong and what to do. */
export async function openBundle(files: BundleFiles, progress: (loading: Loading) => void): Promise<Bundle> {
  const manifest = await readManifest(await files.manifest());
  const artifact = manifest.artifacts.find((entry) => entry.target === TARGET);
  if (artifact === undefined) {
    const have = manifest.artifacts.map((entry) => entry.target).join(", ");
    throw new BundleError(`This bundle has no ONNX artifact, only ${have}. Export it again with --to onnx.`);
  }
  if (manifest.tokenizer === null) throw new BundleError("This bundle has no tokenizer; the app runs models of text.");
  const tokenizerPath = manifest.tokenizer.path;
  const paths = {
    model: artifact.path,
    spec: `${tokenizerPath}/tokenizer_spec.json`,
    tokenizerGolden: `${tokenizerPath}/golden.jsonl`,
    golden: "golden.jsonl",
    card: "README.md",
  };
  const beside = artifact.path.slice(0, artifact.path.lastIndexOf("/") + 1);
  const isUsed = (entry: FileEntry) =>
    Object.values(paths).includes(entry.path) || (entry.role === "artifact" && beside !== "" && entry.path.startsWith(beside));
  const used = manifest.files.filter(isUsed);
  for (const path of [paths.model, paths.spec]) {
    if (!used.some((entry) => entry.path === path)) {
      throw new BundleError(`The manifest does not list ${path} among its files. Export the bundle again.`);
    }
  }

  const total = used.reduce((sum, entry) => sum + entry.size, 0);
  let loaded = 0;
  const content = new Map<string, Bytes>();
  for (const entry of used) {
    const bytes = await files.read(entry, (more) => progress({ loaded: (loaded += more), total }));
    content.set(entry.path, bytes);
  }

  const model = content.get(paths.model)!;
  const identity = onnxProperty(model, IDENTITY);
  if (identity !== manifest.identity) {
    throw new BundleError(
      `${artifact.path} does not belong to this bundle: it carries identity ${identity ?? "none"}. Export the bundle again.`,
    );
  }
  const text = (path: string) => new TextDecoder().decode(content.get(path) ?? new Uint8Array());
  return {
    name: files.name,
    manifest,
    artifact,
    model,
    externalData: used
      .filter((entry) => entry.role === "artifact" && entry.path !== artifact.path)
      .map((entry) => ({ path: entry.path.slice(beside.length), data: content.get(entry.path)! })),
    tokenizer: new Tokenizer(parsed(text(paths.spec), paths.spec)),
    card: text(paths.card),
    golden: text(paths.golden),
    tokenizerGolden: text(paths.tokenizerGolden),
    checked: used.length,
    unused: manifest.files.filter((entry) => !isUsed(entry)).map((entry) => entry.path),
  };
}

function parsed(text: string, path: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new BundleError(`${path} is not JSON. Export the bundle again.`);
  }
}
