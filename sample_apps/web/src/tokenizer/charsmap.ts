/** SentencePiece's map of characters: a trie of bytes, and the texts that it leads to. */

import { BundleError } from "../errors";
import { type Cell, type Change, type CharacterClass, codePoints } from "./cells";

const encoder = new TextEncoder();

export class Charsmap {
  private readonly trie: DataView;
  private readonly units: number;
  private readonly texts: Uint8Array;

  constructor(
    base64: string,
    private readonly extends_: CharacterClass,
    private readonly isControl: CharacterClass,
  ) {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const size = bytes.length >= 4 ? new DataView(bytes.buffer).getUint32(0, true) : Infinity;
    if (4 + size > bytes.length || size < 4 || size % 4 > 0) {
      throw new BundleError("The charsmap of tokenizer_spec.json is cut. Export the bundle again.");
    }
    this.trie = new DataView(bytes.buffer, 4, size);
    this.units = size / 4;
    this.texts = bytes.subarray(4 + size);
  }

  /** What the shortest prefix of `text` that has a result becomes; null: no prefix has one. */
  private lookup(text: string): string | null {
    let at = offset(this.unit(0));
    for (const byte of encoder.encode(text)) {
      at ^= byte;
      if (at >= this.units) return null;
      const unit = this.unit(at);
      if ((unit & 0x800000ff) !== byte) return null;
      at ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const start = this.unit(at) & 0x7fffffff;
        return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.texts.subarray(start, this.texts.indexOf(0, start)));
      }
    }
    return null;
  }

  private unit(at: number): number {
    return this.trie.getUint32(at * 4, true);
  }

  changes(cells: readonly Cell[]): Change[] {
    const out: Change[] = [];
    for (const cluster of this.clusters(cells)) {
      const text = cluster.join("");
      const whole = encoder.encode(text).length < 6 ? this.lookup(text) : null;
      if (whole !== null) add(out, cluster.length, codePoints(whole));
      else for (const c of cluster) add(out, 1, codePoints(this.lookup(c) ?? c));
    }
    return out;
  }

  private *clusters(cells: readonly Cell[]): Generator<string[]> {
    for (let at = 0; at < cells.length; ) {
      const start = at++;
      const first = cells[start]!.c;
      if (first === "\r" && cells[at]?.c === "\n") at++;
      else if (!this.isControl(first)) while (at < cells.length && this.extends_(cells[at]!.c)) at++;
      yield cells.slice(start, at).map((cell) => cell.c);
    }
  }
}

/** `old` characters become `made`. */
function add(out: Change[], old: number, made: string[]): void {
  made.forEach((c, at) => out.push([c, at < old ? 0 : 1]));
  if (made.length < old && out.length > 0) out.at(-1)![1] += made.length - old;
}

const offset = (unit: number): number => ((unit >>> 10) << ((unit & 512) >>> 6)) >>> 0;
