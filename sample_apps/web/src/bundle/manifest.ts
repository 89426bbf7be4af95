/** `manifest.json`: its types, and the check that refuses what this app does not know. */

import schema from "../../../../runtime/manifest.schema.json";
import { BundleError } from "../errors";
import { checkSchema } from "../schema";
import { sha256 } from "./hash";

export const SCHEMA_VERSION = 1;

export type Dim = number | { symbol: string; values: number[] } | { symbol: string; min: number; max: number | null };

export interface TensorSpec {
  name: string;
  dtype: string;
  dims: Dim[];
}

export interface FileEntry {
  path: string;
  role: string;
  size: number;
  sha256: string;
}

export interface Artifact {
  target: string;
  path: string;
  precision: string;
  quantization: Record<string, unknown> | null;
  inputs: TensorSpec[];
  outputs: TensorSpec[];
}

export interface TokenizerEntry {
  path: string;
  kind: string;
  tokenizer_class: string;
  max_length: number;
  truncation_side: "left" | "right";
  padding_side: "left" | "right";
  pad_to_multiple_of: number | null;
  inputs: string[];
  input_pad: Record<string, number>;
}

export interface Manifest {
  schema_version: number;
  min_reader_version: number;
  identity: string;
  producer: Record<string, string>;
  source: {
    id: string;
    revision: string | null;
    weights_sha256: string;
    architecture: string;
    model_type: string | null;
    license: string | null;
  };
  task: string;
  files: FileEntry[];
  artifacts: Artifact[];
  tokenizer: TokenizerEntry | null;
  preprocess: Record<string, unknown>;
  postprocess: {
    activation?: "softmax" | "sigmoid" | "none";
    id2label?: Record<string, string>;
    pooling?: string | null;
    normalize?: boolean;
    output?: string;
  };
  parity: {
    reference?: string;
    artifacts?: Record<string, { status?: string; engine?: string; max_error?: number; cosine?: number }>;
  };
}

/** Read a manifest. Throws BundleError when it is none, newer than this app, or altered. */
export async function readManifest(text: string): Promise<Manifest> {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    throw new BundleError("There is no manifest.json here that is JSON, so this is not a palmtop bundle.");
  }
  const needed = (data as { min_reader_version?: unknown } | null)?.min_reader_version;
  if (typeof needed === "number" && needed > SCHEMA_VERSION) {
    throw new BundleError(
      `This bundle needs a reader of schema version ${needed}; this app reads up to ${SCHEMA_VERSION}. ` +
        "Use a newer version of the app, or export the bundle again with an older palmtop.",
    );
  }
  checkSchema(data, schema, "manifest.json");
  const manifest = data as Manifest;
  if ((await identityOf(text)) !== manifest.identity) {
    throw new BundleError("manifest.json was altered: its identity does not match its content. Export the bundle again.");
  }
  return manifest;
}

const OUTSIDE_IDENTITY = new Set(["identity", "files", "parity"]);

/**
 * SHA-256 of the manifest without `identity`, `files` and `parity`, as JSON with sorted keys and no spaces.
 *
 * Taken from the text, since a number read and written again may be spelled differently. palmtop writes sorted keys.
 */
async function identityOf(text: string): Promise<string> {
  const members = topLevel(text).filter(([key]) => !OUTSIDE_IDENTITY.has(JSON.parse(key) as string));
  return sha256(new TextEncoder().encode(`{${members.map(([key, value]) => `${key}:${value}`).join(",")}}`));
}

/** The members of the object that a JSON text is, as texts without spaces between tokens. */
function topLevel(text: string): [key: string, value: string][] {
  const members: [string, string][] = [];
  let depth = 0;
  let key = "";
  let token = "";
  for (const [part] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/gu)) {
    const opens = part === "{" || part === "[";
    const closes = part === "}" || part === "]";
    if (closes) depth--;
    if (depth === 0 || (depth === 1 && part === ",")) {
      if (key !== "") members.push([key, token]);
      key = token = "";
    } else if (depth === 1 && part === ":" && key === "") {
      key = token;
      token = "";
    } else token += part;
    if (opens) depth++;
  }
  return members;
}

/** The smallest size that an axis admits and that is at least `size`; null when there is none. */
export function fit(dim: Dim, size: number): number | null {
  if (typeof dim === "number") return size <= dim ? dim : null;
  if ("values" in dim) {
    const fitting = dim.values.filter((value) => value >= size);
    return fitting.length > 0 ? Math.min(...fitting) : null;
  }
  const least = Math.max(size, dim.min);
  return dim.max === null || least <= dim.max ? least : null;
}

/** The largest size that an axis admits; Infinity without a bound. */
export function largest(dim: Dim): number {
  if (typeof dim === "number") return dim;
  return "values" in dim ? Math.max(...dim.values) : (dim.max ?? Infinity);
}
