/** The ONNX artifact of a bundle in ONNX Runtime, fed as its manifest says. */

import * as ort from "onnxruntime-web/wasm";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import type { Bundle } from "../bundle/bundle";
import { fit, largest, type TensorSpec } from "../bundle/manifest";
import { BundleError } from "../errors";
import type { Encoding } from "../tokenizer/tokenizer";

ort.env.wasm.wasmPaths = { wasm: new URL(wasm, self.location.href).href };
ort.env.wasm.numThreads = 1; // more need headers that a plain server of files does not send

const KNOWN_INPUTS: Record<string, (encoding: Encoding) => number[]> = {
  input_ids: (encoding) => encoding.ids,
  attention_mask: (encoding) => encoding.attention_mask,
  token_type_ids: (encoding) => encoding.type_ids,
  special_tokens_mask: (encoding) => encoding.special_tokens_mask,
};

export class Model {
  readonly maxLength: number;

  private constructor(
    private readonly bundle: Bundle,
    private readonly session: ort.InferenceSession,
    private readonly ids: TensorSpec,
  ) {
    this.maxLength = Math.min(bundle.manifest.tokenizer!.max_length, largest(ids.dims.at(-1)!));
  }

  /** Throws BundleError when the artifact wants what this app cannot give, or does not load. */
  static async open(bundle: Bundle): Promise<Model> {
    const { inputs, path } = bundle.artifact;
    const ids = inputs.find((spec) => spec.name === "input_ids");
    if (ids === undefined) throw new BundleError(`${path} takes no input_ids. This app runs models of text.`);
    const made = bundle.manifest.tokenizer!.inputs;
    for (const { name } of inputs) {
      if (!(name in KNOWN_INPUTS) || !made.includes(name)) {
        throw new BundleError(`${path} takes ${name}, which this app does not make. Use a newer version of the app.`);
      }
    }
    let session: ort.InferenceSession;
    try {
      session = await ort.InferenceSession.create(bundle.model, {
        executionProviders: ["wasm"],
        externalData: bundle.externalData,
      });
    } catch (error) {
      throw new BundleError(`ONNX Runtime cannot load ${path}: ${(error as Error).message}`);
    }
    return new Model(bundle, session, ids);
  }

  /** Tokenize a text, or a pair, as the manifest says, cut to what the model takes. */
  encode(text: string, maxLength = this.maxLength, pair: string | null = null): Encoding {
    const side = this.bundle.manifest.tokenizer!.truncation_side;
    const truncation = { max_length: maxLength, side, strategy: "longest_first" } as const;
    return this.bundle.tokenizer.encode(text, { pair, truncation });
  }

  /** The values of one output for one text, padded to `least` tokens or to what the model takes. */
  async run(encoding: Encoding, output: string, least = 0): Promise<Float32Array> {
    const length = this.paddedLength(Math.max(encoding.ids.length, least));
    const rows = fit(this.ids.dims[0]!, 1) ?? 1;
    const feeds: Record<string, ort.Tensor> = {};
    for (const spec of this.bundle.artifact.inputs) {
      const row = this.padded(spec.name, encoding, length);
      feeds[spec.name] = tensor(spec, Array.from({ length: rows }, () => row).flat(), [rows, length]);
    }
    const results = await this.session.run(feeds, [output]);
    const found = results[output]!;
    const values = widened(found);
    Object.values(results).forEach((result) => result.dispose());
    return values.slice(0, values.length / rows);
  }

  close(): Promise<void> {
    return this.session.release();
  }

  private paddedLength(used: number): number {
    const axis = this.ids.dims.at(-1)!;
    const multiple = this.bundle.manifest.tokenizer!.pad_to_multiple_of ?? 1;
    const length = fit(axis, Math.ceil(used / multiple) * multiple) ?? fit(axis, used);
    if (length === null) throw new BundleError(`A text has ${used} tokens, which the model does not take.`);
    return length;
  }

  /** An input of the model for one text, padded. */
  padded(name: string, encoding: Encoding, length: number): number[] {
    const row = KNOWN_INPUTS[name]!(encoding);
    const entry = this.bundle.manifest.tokenizer!;
    const value = entry.input_pad[name] ?? (name === "special_tokens_mask" ? 1 : 0);
    const padding = new Array<number>(Math.max(length - row.length, 0)).fill(value);
    return entry.padding_side === "left" ? [...padding, ...row] : [...row, ...padding];
  }
}

function tensor(spec: TensorSpec, values: number[], dims: number[]): ort.Tensor {
  switch (spec.dtype) {
    case "int64":
      return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
    case "int32":
      return new ort.Tensor("int32", Int32Array.from(values), dims);
    default:
      throw new BundleError(`The model takes ${spec.name} as ${spec.dtype}, which this app does not make.`);
  }
}

function widened(tensor: ort.Tensor): Float32Array {
  const { data } = tensor;
  if (data instanceof Float32Array) return data;
  if (tensor.type === "float16" && data instanceof Uint16Array) return Float32Array.from(data, halfToFloat);
  return Float32Array.from(data as unknown as ArrayLike<number>);
}

/** The number behind the bits of an IEEE 754 half. */
export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
