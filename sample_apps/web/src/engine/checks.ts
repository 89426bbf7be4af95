/** A bundle's own checks, run here: the golden vectors of its tokenizer and of its model. */

import type { Bundle } from "../bundle/bundle";
import { differences, readGolden } from "../tokenizer/golden";
import type { Model } from "./model";
import { cosine, outputOf } from "./pipelines";

export interface Checks {
  tokenizer: { passed: number; vectors: number; differences: string[] };
  /** `error`: the largest error of an output value, relative to the reference's scale. */
  model: { passed: number; vectors: number; error: number };
}

/** Beyond this an answer is not the reference's: palmtop holds ONNX itself to less, other processors add a little. */
const ALLOWED = 1e-3;
/** Artifacts of lower precision are not to give the same values, but to point the same way. */
const ALIKE = 0.99;

interface GoldenAnswer {
  text?: string | null;
  text_pair?: string | null;
  options: { max_length: number; truncation: string | null; pad_to?: number };
  encoding: { input_ids: number[] };
  outputs: Record<string, { every: number; values: number[] }>;
}

export async function runChecks(bundle: Bundle, model: Model): Promise<Checks> {
  const vectors = bundle.tokenizerGolden === "" ? [] : readGolden(bundle.tokenizerGolden);
  const wrong = differences(bundle.tokenizer, vectors);
  return {
    tokenizer: { passed: vectors.length - wrong.length, vectors: vectors.length, differences: wrong.slice(0, 5) },
    model: await checkModel(bundle, model),
  };
}

async function checkModel(bundle: Bundle, model: Model): Promise<Checks["model"]> {
  const output = outputOf(bundle);
  const precise = bundle.artifact.precision === "fp32";
  const result = { passed: 0, vectors: 0, error: 0 };
  for (const line of bundle.golden.split("\n")) {
    if (line === "") continue;
    const golden = JSON.parse(line) as GoldenAnswer;
    const expected = golden.outputs[output];
    if (typeof golden.text !== "string" || expected === undefined) continue;
    result.vectors += 1;
    const { max_length: maxLength, pad_to: least = 0 } = golden.options;
    const encoding = model.encode(golden.text, maxLength, golden.text_pair ?? null);
    const ids = model.padded("input_ids", encoding, least);
    if (JSON.stringify(ids) !== JSON.stringify(golden.encoding.input_ids)) continue;
    const values = await model.run(encoding, output, least);
    const found = values.filter((_, at) => at % expected.every === 0);
    const error = relativeError(found, expected.values);
    result.error = Math.max(result.error, error);
    if (precise ? error <= ALLOWED : cosine(found, Float32Array.from(expected.values)) >= ALIKE) result.passed += 1;
  }
  return result;
}

/** The largest difference, relative to the root mean square of what was expected. */
function relativeError(values: Float32Array, expected: readonly number[]): number {
  if (values.length !== expected.length) return Infinity;
  const scale = Math.sqrt(expected.reduce((sum, value) => sum + value * value, 0) / Math.max(expected.length, 1));
  const most = expected.reduce((worst, value, at) => Math.max(worst, Math.abs(value - values[at]!)), 0);
  return most / Math.max(scale, Number.MIN_VALUE);
}
