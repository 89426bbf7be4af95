/** What comes in and out of the tasks that the app runs: the counterparts of palmtop's Python pipelines. */

import type { Bundle } from "../bundle/bundle";
import { BundleError } from "../errors";
import type { Encoding } from "../tokenizer/tokenizer";
import type { Model } from "./model";

export interface Score {
  label: string;
  score: number;
}

export interface TokenShown {
  text: string;
  special: boolean;
  unknown: boolean;
}

export interface Classified {
  /** Best first. */
  scores: Score[];
  tokens: TokenShown[];
  milliseconds: number;
}

/** What the app does with a bundle. */
export type Kind = "text-classification" | "sentence-similarity";

/** The output that each kind reads. */
const OUTPUTS: Record<Kind, string> = {
  "text-classification": "logits",
  "sentence-similarity": "sentence_embedding",
};

/** Throws BundleError when the app does not run such bundles. */
export function kindOf(bundle: Bundle): Kind {
  const { task, postprocess } = bundle.manifest;
  if (postprocess.output === "sentence_embedding") return "sentence-similarity"; // the artifact gives the finished vector
  if (Object.hasOwn(OUTPUTS, task)) return task as Kind;
  throw new BundleError(`This bundle is for ${task}; the app shows ${Object.keys(OUTPUTS).join(" and ")}.`);
}

/** The output that is read. Throws BundleError for a bundle that lacks what its kind needs. */
export function outputOf(bundle: Bundle): string {
  const output = OUTPUTS[kindOf(bundle)];
  if (!bundle.artifact.outputs.some((spec) => spec.name === output)) {
    throw new BundleError(`${bundle.artifact.path} has no output ${output}. Export the bundle again.`);
  }
  if (output === "logits") labelsOf(bundle);
  prefixOf(bundle);
  return output;
}

export async function classify(bundle: Bundle, model: Model, text: string): Promise<Classified> {
  const start = performance.now();
  const encoding = model.encode(prefixOf(bundle) + text);
  const logits = await model.run(encoding, outputOf(bundle));
  const labels = labelsOf(bundle);
  const scores = activated(logits, bundle.manifest.postprocess.activation ?? "softmax");
  return {
    scores: scores.map((score, at) => ({ label: labels.get(at)!, score })).sort((a, b) => b.score - a.score),
    tokens: tokensOf(bundle, encoding),
    milliseconds: performance.now() - start,
  };
}

/** The vector of a text. */
export function embed(bundle: Bundle, model: Model, text: string): Promise<Float32Array> {
  return model.run(model.encode(prefixOf(bundle) + text), outputOf(bundle));
}

/** How alike two vectors are, from -1 to 1. */
export function cosine(a: Float32Array, b: Float32Array): number {
  let [dot, aa, bb] = [0, 0, 0];
  a.forEach((value, at) => {
    dot += value * b[at]!;
    aa += value * value;
    bb += b[at]! * b[at]!;
  });
  return dot / Math.max(Math.sqrt(aa) * Math.sqrt(bb), Number.MIN_VALUE);
}

function activated(logits: Float32Array, activation: string): number[] {
  const values = Array.from(logits);
  switch (activation) {
    case "softmax": {
      const most = Math.max(...values);
      const raised = values.map((value) => Math.exp(value - most));
      const sum = raised.reduce((a, b) => a + b, 0);
      return raised.map((value) => value / sum);
    }
    case "sigmoid":
      return values.map((value) => (value >= 0 ? 1 / (1 + Math.exp(-value)) : Math.exp(value) / (1 + Math.exp(value))));
    case "none":
      return values;
    default:
      throw new BundleError(`The manifest asks for ${activation}, which this app does not know.`);
  }
}

function labelsOf(bundle: Bundle): Map<number, string> {
  const labels = new Map(
    Object.entries(bundle.manifest.postprocess.id2label ?? {}).map(([index, label]) => [Number(index), label]),
  );
  const count = bundle.artifact.outputs.find((spec) => spec.name === "logits")?.dims.at(-1);
  if (labels.size === 0 || typeof count !== "number" || [...Array(count).keys()].some((index) => !labels.has(index))) {
    throw new BundleError("The manifest does not name the label of each output (postprocess.id2label).");
  }
  return labels;
}

/** What stands before each text, as the model was trained. Throws BundleError for a setting that is not known. */
function prefixOf(bundle: Bundle): string {
  const { prompts = {}, default_prompt: name = null, ...others } = bundle.manifest.preprocess as {
    prompts?: Record<string, string>;
    default_prompt?: string | null;
  };
  const unknown = Object.entries(others).filter(([, value]) => value !== false && value !== null);
  if (unknown.length > 0) {
    throw new BundleError(`The manifest asks for ${unknown[0]![0]} before the tokenizer, which this app does not know.`);
  }
  if (name === null) return "";
  const prefix = prompts[name];
  if (prefix === undefined) throw new BundleError(`The manifest names a prompt "${name}" and has none such.`);
  return prefix;
}

function tokensOf(bundle: Bundle, encoding: Encoding): TokenShown[] {
  const unknown = bundle.tokenizer.spec.model.unk_id;
  return encoding.ids.map((id, at) => ({
    text: bundle.tokenizer.token(id) ?? "",
    special: encoding.special_tokens_mask[at] === 1,
    unknown: id === unknown && encoding.special_tokens_mask[at] === 0,
  }));
}
