/** The four kinds of model: from a piece to its tokens. */

import { BundleError } from "../errors";
import type { Cell } from "./cells";
import { bytesOf } from "./split";
import type { Bpe, ModelSpec, TokenizerSpec, Unigram, WordPiece } from "./spec";

/** A token, and which cells of the piece it covers: `[first, last)`. */
export type Token = [id: number, first: number, last: number];
export type Model = (piece: readonly Cell[]) => Token[];
type Ids = ReadonlyMap<string, number>;

/** The model of a specification. Throws BundleError when its parts do not belong together. */
export function makeModel(spec: TokenizerSpec, ids: Ids): Model {
  const model: ModelSpec = spec.model;
  const { unk_id } = model;
  if (unk_id !== null && typeof spec.vocabulary[unk_id] !== "string") {
    throw new BundleError("tokenizer_spec.json: the unknown token is not in the vocabulary. Export the bundle again.");
  }
  switch (model.type) {
    case "wordlevel":
      return (piece) => [[ids.get(range(piece, 0, piece.length)) ?? model.unk_id, 0, piece.length]];
    case "wordpiece":
      return wordpiece(model, ids);
    case "bpe":
      return bpe(model, ids, spec.vocabulary);
    case "unigram":
      return unigram(model, ids, spec.vocabulary.length);
  }
}

function range(piece: readonly Cell[], start: number, end: number): string {
  let text = "";
  for (let at = start; at < end; at++) text += piece[at]!.c;
  return text;
}

function longest(ids: Ids): number {
  let most = 0;
  for (const token of ids.keys()) if (token.length > most) most = Math.max(most, [...token].length);
  return most;
}

/** The ids of the bytes of a text, `<0x0A>` and so on; null when one of them is missing. */
function byteTokens(text: string, ids: Ids): number[] | null {
  const found = bytesOf(text).map((byte) => ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
  return found.every((id) => id !== undefined) ? (found as number[]) : null;
}

function wordpiece(model: WordPiece, ids: Ids): Model {
  const most = longest(ids);
  return (piece) => {
    const unknown: Token[] = [[model.unk_id, 0, piece.length]];
    if (piece.length > model.max_input_chars_per_word) return unknown;
    const found: Token[] = [];
    for (let start = 0; start < piece.length; ) {
      const prefix = start > 0 ? model.continuing_subword_prefix : "";
      let end = Math.min(piece.length, start + most);
      let id: number | undefined;
      for (; end > start; end--) {
        id = ids.get(prefix + range(piece, start, end));
        if (id !== undefined) break;
      }
      if (id === undefined) return unknown;
      found.push([id, start, end]);
      start = end;
    }
    return found;
  };
}

/** A pair of tokens as one string: where the first ends is part of it. */
const pairOf = (left: string, right: string): string => `${left.length} ${left}${right}`;

function bpe(model: Bpe, ids: Ids, vocabulary: readonly (string | null)[]): Model {
  const { continuing_subword_prefix: prefix, end_of_word_suffix: suffix, unk_id } = model;
  const ranks = new Map<string, [rank: number, id: number]>();
  model.merges.forEach(([left, right], rank) => {
    const id = ids.get(left + right.slice(prefix.length));
    if (id === undefined) {
      throw new BundleError(`tokenizer_spec.json: a merge makes a token that is not in the vocabulary (number ${rank}).`);
    }
    const pair = pairOf(left, right);
    if (!ranks.has(pair)) ranks.set(pair, [rank, id]);
  });

  const symbolsOf = (piece: readonly Cell[]): Token[] => {
    const symbols: Token[] = [];
    let fusing = false; // whether the last symbol is an unknown one that the next unknown character joins
    piece.forEach(({ c }, at) => {
      const text = (at > 0 ? prefix : "") + c + (at === piece.length - 1 ? suffix : "");
      const id = ids.get(text);
      const bytes = id === undefined && model.byte_fallback ? byteTokens(text, ids) : null;
      if (id !== undefined) symbols.push([id, at, at + 1]);
      else if (bytes !== null) for (const byte of bytes) symbols.push([byte, at, at + 1]);
      else if (unk_id !== null) {
        if (fusing && model.fuse_unk) symbols.at(-1)![2] = at + 1;
        else symbols.push([unk_id, at, at + 1]);
        fusing = true;
        return;
      } else return;
      fusing = false;
    });
    return symbols;
  };

  return (piece) => {
    if (model.ignore_merges) {
      const whole = ids.get(range(piece, 0, piece.length));
      if (whole !== undefined) return [[whole, 0, piece.length]];
    }
    const symbols = symbolsOf(piece);
    const merge = (at: number) =>
      at >= 0 && at + 1 < symbols.length
        ? ranks.get(pairOf(vocabulary[symbols[at]![0]]!, vocabulary[symbols[at + 1]![0]]!))
        : undefined;
    const merges = symbols.map((_, at) => merge(at)); // of each symbol with the next one
    for (;;) {
      let best = -1;
      for (let at = 0; at < merges.length; at++) {
        if (merges[at] !== undefined && (best < 0 || merges[at]![0] < merges[best]![0])) best = at;
      }
      if (best < 0) return symbols;
      symbols.splice(best, 2, [merges[best]![1], symbols[best]![1], symbols[best + 1]![2]]);
      merges.splice(best + 1, 1);
      merges[best] = merge(best);
      if (best > 0) merges[best - 1] = merge(best - 1);
    }
  };
}

function unigram(model: Unigram, ids: Ids, size: number): Model {
  const { scores, unk_id } = model;
  if (scores.length !== size) throw new BundleError("tokenizer_spec.json: not one score a token. Export the bundle again.");
  const most = longest(ids);
  const unknownScore = scores.reduce((a, b) => Math.min(a, b), Infinity) - 10;

  const bestPath = (piece: readonly Cell[]): Token[] => {
    const best: ({ score: number; start: number; id: number } | undefined)[] = [{ score: 0, start: -1, id: -1 }];
    for (let start = 0; start < piece.length; start++) {
      const here = best[start]?.score;
      if (here === undefined) continue;
      let single = false;
      let text = "";
      for (let end = start + 1; end <= Math.min(piece.length, start + most); end++) {
        text += piece[end - 1]!.c;
        const id = ids.get(text);
        if (id === undefined) continue;
        if (end === start + 1) single = true;
        const score = here + scores[id]!;
        if (best[end] === undefined || score > best[end]!.score) best[end] = { score, start, id };
      }
      const score = here + unknownScore;
      if (!single && (best[start + 1] === undefined || score > best[start + 1]!.score)) {
        if (unk_id === null) throw new BundleError(`The tokenizer has no token for "${piece[start]!.c}".`);
        best[start + 1] = { score, start, id: unk_id };
      }
    }
    const path: Token[] = [];
    for (let end = piece.length; end > 0; ) {
      const { start, id } = best[end]!;
      const behind = path.at(-1);
      if (id === unk_id && behind?.[0] === unk_id) behind[1] = start; // neighbouring unknown tokens are one
      else path.push([id, start, end]);
      end = start;
    }
    return path.reverse();
  };

  return (piece) =>
    bestPath(piece).flatMap((token): Token[] => {
      const [id, start, end] = token;
      const bytes = id === unk_id && model.byte_fallback ? byteTokens(range(piece, start, end), ids) : null;
      return bytes === null ? [token] : bytes.map((byte): Token => [byte, start, end]);
    });
}
