/** `tokenizer_spec.json`: its types, and the check that refuses whatever this reader does not know. */

import schema from "../../../../runtime/tokenizer_spec.schema.json";
import { BundleError } from "../errors";
import { checkSchema } from "../schema";

export const SPEC_VERSION = 1;

export type Side = "left" | "right";
export type Match = { literal: string } | { class: string } | { regex: string; name: string | null; source: string };
export type Replace = { type: "replace"; match: Match; content: string; keep: boolean };

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  lstrip: boolean;
  rstrip: boolean;
  single_word: boolean;
  normalized: boolean;
}

export type NormalizerStep =
  | { type: "nfc" | "nfd" | "nfkc" | "nfkd" | "lowercase" }
  | Replace
  | { type: "surround"; match: Match; content: string }
  | { type: "strip"; left: boolean; right: boolean }
  | { type: "prepend"; content: string }
  | { type: "precompiled"; charsmap: string };

export type Behavior = "removed" | "isolated" | "merged_with_previous" | "merged_with_next" | "contiguous";

export type PreTokenizerStep =
  | { type: "split"; match: Match; behavior: Behavior; invert: boolean }
  | { type: "bytes" | "prepend_space" }
  | { type: "metaspace"; replacement: string; prepend_scheme: "always" | "first" | "never"; split: boolean }
  | { type: "fixed_length"; length: number };

export type WordLevel = { type: "wordlevel"; unk_id: number };
export type WordPiece = {
  type: "wordpiece";
  unk_id: number;
  continuing_subword_prefix: string;
  max_input_chars_per_word: number;
};
export type Bpe = {
  type: "bpe";
  merges: [string, string][];
  unk_id: number | null;
  fuse_unk: boolean;
  byte_fallback: boolean;
  continuing_subword_prefix: string;
  end_of_word_suffix: string;
  ignore_merges: boolean;
};
export type Unigram = { type: "unigram"; scores: number[]; unk_id: number | null; byte_fallback: boolean };
export type ModelSpec = WordLevel | WordPiece | Bpe | Unigram;

export type Piece = { special: number; type_id: number } | { sequence: "A" | "B"; type_id: number };

export interface PostProcessor {
  single: Piece[];
  pair: Piece[];
  trim_offsets: boolean;
  trim_keeps_prefix_space: boolean;
}

export type DecoderStep =
  | { type: "byte_level" | "byte_fallback" | "fuse" }
  | { type: "wordpiece"; prefix: string; cleanup: boolean }
  | { type: "bpe"; suffix: string }
  | { type: "metaspace"; replacement: string; strip: boolean }
  | Replace
  | { type: "strip"; content: string; start: number; stop: number };

export interface TokenizerSpec {
  format: "palmtop-tokenizer";
  spec_version: number;
  model: ModelSpec;
  vocabulary: (string | null)[];
  added_tokens: AddedToken[];
  normalizer: NormalizerStep[];
  pre_tokenizer: PreTokenizerStep[];
  post_processor: PostProcessor;
  decoder: DecoderStep[] | null;
  cleanup: boolean;
  truncation: { max_length: number; side: Side; strategy: Strategy };
  padding: { side: Side; id: number; type_id: number; multiple_of: number | null };
  inputs: string[];
  classes: Record<string, [number, number][]>;
}

export type Strategy = "longest_first" | "only_first" | "only_second";

/** `data` as a specification. Throws BundleError for anything that the page does not have. */
export function checkTokenizerSpec(data: unknown, what = "tokenizer_spec.json"): TokenizerSpec {
  const head = (data ?? {}) as { format?: unknown; spec_version?: unknown };
  if (head.format !== "palmtop-tokenizer") throw new BundleError(`${what} is not a palmtop tokenizer specification.`);
  if (typeof head.spec_version === "number" && head.spec_version > SPEC_VERSION) {
    throw new BundleError(
      `${what} is of version ${head.spec_version}; this app reads up to ${SPEC_VERSION}. ` +
        "Use a newer version of the app, or export the bundle again with an older palmtop.",
    );
  }
  checkSchema(data, schema, what);
  return data as TokenizerSpec;
}
