/** A tokenizer made of `tokenizer_spec.json`: text to ids, masks, types and offsets, and back. */

import { BundleError } from "../errors";
import { finder, type Finder } from "./added";
import { type Cell, cellsOf, characterClass, type CharacterClass, codePoints } from "./cells";
import { cleanedUp, type Decode, decoderStep } from "./decode";
import { makeModel, type Model } from "./models";
import { normalizerStep, type Step } from "./normalize";
import { type AddedToken, checkTokenizerSpec, type Side, type Strategy, type TokenizerSpec } from "./spec";
import { BYTE_CHARACTERS, type Split, splitStep } from "./split";

export interface Truncation {
  max_length: number;
  side: Side;
  strategy: Strategy;
}

export interface EncodeOptions {
  pair?: string | null;
  addSpecialTokens?: boolean;
  /** null: nothing is cut. */
  truncation?: Truncation | null;
  padding?: { length: number; side: Side } | null;
}

/** One entry a token. Offsets count code points; [0, 0] for special tokens and padding. */
export interface Encoding {
  ids: number[];
  attention_mask: number[];
  type_ids: number[];
  special_tokens_mask: number[];
  offsets: [number, number][];
  /** Which text a token is of: 0, 1, or null for special tokens and padding. */
  sequences: (0 | 1 | null)[];
}

interface Found {
  id: number;
  start: number;
  end: number;
}

export class Tokenizer {
  readonly spec: TokenizerSpec;
  private readonly tokens: ReadonlyMap<number, string>;
  private readonly special: ReadonlySet<number>;
  private readonly isSpace: CharacterClass;
  private readonly normalizer: Step[];
  private readonly splits: Split[];
  private readonly decoder: Decode[] | null;
  private readonly model: Model;
  private readonly raw: Finder;
  private readonly normalized: Finder;

  /** `data` is the content of `tokenizer_spec.json`. Throws BundleError for what this reader does not know. */
  constructor(data: unknown) {
    const spec = checkTokenizerSpec(data);
    this.spec = spec;
    const classes = new Map(Object.entries(spec.classes).map(([name, ranges]) => [name, characterClass(ranges)]));
    this.isSpace = classes.get("whitespace")!;
    this.normalizer = spec.normalizer.map((step) => normalizerStep(step, classes));
    this.splits = spec.pre_tokenizer.map((step) => splitStep(step, classes));
    this.decoder = spec.decoder?.map((step) => decoderStep(step, classes)) ?? null;

    const ids = new Map<string, number>();
    spec.vocabulary.forEach((token, id) => token !== null && ids.set(token, id));
    this.model = makeModel(spec, ids);

    const named = (token: AddedToken) => [codePoints(token.content), token] as const;
    const renamed = (token: AddedToken) =>
      [this.normalize(cellsOf(token.content)).map((cell) => cell.c), token] as const;
    const normal = spec.added_tokens.filter((token) => token.normalized).map(renamed);
    const isWord = classes.get("word")!;
    this.raw = finder(spec.added_tokens.filter((token) => !token.normalized).map(named), this.isSpace, isWord);
    this.normalized = finder(normal, this.isSpace, isWord);
    this.special = new Set(spec.added_tokens.filter((token) => token.special).map((token) => token.id));
    this.tokens = new Map([
      ...[...ids].map(([token, id]) => [id, token] as const),
      ...spec.added_tokens.map((token) => [token.id, token.content] as const),
      ...normal.map(([name, token]) => [token.id, name.join("")] as const),
    ]);
    for (const piece of [...spec.post_processor.single, ...spec.post_processor.pair]) {
      if ("special" in piece && !this.tokens.has(piece.special)) {
        throw new BundleError(`tokenizer_spec.json puts token ${piece.special} around texts and has none such.`);
      }
    }
  }

  /** The token of an id, as it stands in the vocabulary. */
  token(id: number): string | undefined {
    return this.tokens.get(id);
  }

  /** Ids and what belongs to them. Throws BundleError when a text cannot be cut as asked. */
  encode(text: string, options: EncodeOptions = {}): Encoding {
    const { pair = null, addSpecialTokens = true, truncation = null, padding = null } = options;
    const post = this.spec.post_processor;
    const template = (pair === null ? post.single : post.pair).filter((piece) => addSpecialTokens || "sequence" in piece);
    let parts = [this.tokenize(text), ...(pair === null ? [] : [this.tokenize(pair)])];
    if (truncation !== null) parts = cut(parts, truncation, template.filter((piece) => "special" in piece).length);
    if (post.trim_offsets) parts = parts.map((part) => this.trimmed(part));

    const out: Encoding = { ids: [], attention_mask: [], type_ids: [], special_tokens_mask: [], offsets: [], sequences: [] };
    const add = (id: number, type: number, attended: number, special: number, at: [number, number], of: 0 | 1 | null) => {
      out.ids.push(id);
      out.type_ids.push(type);
      out.attention_mask.push(attended);
      out.special_tokens_mask.push(special);
      out.offsets.push(at);
      out.sequences.push(of);
    };
    for (const piece of template) {
      if ("special" in piece) add(piece.special, piece.type_id, 1, 1, [0, 0], null);
      else {
        const which = piece.sequence === "A" ? 0 : 1;
        for (const { id, start, end } of parts[which] ?? []) add(id, piece.type_id, 1, 0, [start, end], which);
      }
    }
    if (padding !== null) this.pad(out, padding.length, padding.side);
    return out;
  }

  /** The text of some ids. */
  decode(ids: readonly number[], skipSpecialTokens = false): string {
    let texts: string[] = [];
    for (const id of ids) {
      const token = this.tokens.get(id);
      if (token !== undefined && !(skipSpecialTokens && this.special.has(id))) texts.push(token);
    }
    for (const step of this.decoder ?? []) texts = step(texts);
    const text = texts.join(this.decoder === null ? " " : "");
    return this.spec.cleanup ? cleanedUp(text) : text;
  }

  private normalize(cells: Cell[]): Cell[] {
    return this.normalizer.reduce((done, step) => step(done), cells);
  }

  private tokenize(text: string): Found[] {
    const found: Found[] = [];
    const add = (id: number, cells: readonly Cell[], first: number, last: number) =>
      found.push({ id, start: cells[first]!.from, end: cells[last - 1]!.to });
    for (const { cells, token } of this.raw(cellsOf(text))) {
      if (token !== null) {
        add(token.id, cells, 0, cells.length);
        continue;
      }
      for (const inner of this.normalized(this.normalize(cells))) {
        if (inner.token !== null) {
          add(inner.token.id, inner.cells, 0, inner.cells.length);
          continue;
        }
        for (const piece of this.pieces(inner.cells)) {
          for (const [id, first, last] of this.model(piece)) add(id, piece, first, last);
        }
      }
    }
    return found;
  }

  private pieces(cells: Cell[]): Cell[][] {
    let pieces = [cells].filter((piece) => piece.length > 0);
    for (const split of this.splits) pieces = pieces.flatMap(split).filter((piece) => piece.length > 0);
    return pieces;
  }

  private trimmed(part: Found[]): Found[] {
    const keeps = this.spec.post_processor.trim_keeps_prefix_space;
    const isBlank = (c: string) => c === BYTE_CHARACTERS[0x20] || this.isSpace(c);
    return part.map(({ id, start, end }, at) => {
      const blank = [...(this.tokens.get(id) ?? "")].map(isBlank);
      const first = blank.indexOf(false);
      let leading = first < 0 ? blank.length : first;
      const trailing = first < 0 ? blank.length : blank.length - 1 - blank.lastIndexOf(false);
      if (leading > 0) {
        if (keeps && (at === 0 || start === 0)) leading -= 1;
        start = Math.min(start + leading, end);
      }
      if (trailing > 0 && end >= trailing) end = Math.max(end - trailing, start);
      return { id, start, end };
    });
  }

  private pad(encoding: Encoding, length: number, side: Side): void {
    const missing = length - encoding.ids.length;
    if (missing <= 0) return;
    const { id, type_id } = this.spec.padding;
    const fill = <T>(row: T[], value: T) => {
      const padding = new Array<T>(missing).fill(value);
      if (side === "left") row.unshift(...padding);
      else row.push(...padding);
    };
    fill(encoding.ids, id);
    fill(encoding.type_ids, type_id);
    fill(encoding.attention_mask, 0);
    fill(encoding.special_tokens_mask, 1);
    fill<[number, number]>(encoding.offsets, [0, 0]);
    fill<0 | 1 | null>(encoding.sequences, null);
  }
}

function cut(parts: Found[][], truncation: Truncation, specials: number): Found[][] {
  const room = truncation.max_length - specials;
  const lengths = parts.map((part) => part.length);
  const over = lengths.reduce((a, b) => a + b, 0) - room;
  if (over <= 0) return parts;
  if (room < 0) throw new BundleError(`A length of ${truncation.max_length} has no room for ${specials} special tokens.`);
  const kept = shortened(lengths, room, over, truncation.strategy);
  return parts.map((part, at) =>
    truncation.side === "left" ? part.slice(part.length - kept[at]!) : part.slice(0, kept[at]!),
  );
}

function shortened(lengths: number[], room: number, over: number, strategy: Strategy): number[] {
  if (lengths.length === 1 && strategy !== "only_second") return [room];
  if (strategy === "longest_first") {
    let [low, high] = [...lengths].sort((a, b) => a - b) as [number, number];
    high = low > room ? low : Math.max(low, room - low);
    if (low + high > room) {
      low = Math.floor(room / 2);
      high = room - low;
    }
    return lengths[0]! <= lengths[1]! ? [low, high] : [high, low];
  }
  const which = strategy === "only_first" ? 0 : 1;
  if (which >= lengths.length || lengths[which]! <= over) {
    throw new BundleError("The part of the text that may be cut is too short. Shorten the part that is kept whole.");
  }
  return lengths.map((length, at) => (at === which ? length - over : length));
}

