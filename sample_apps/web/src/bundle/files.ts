/** Where the files of a bundle come from: an address, or what the user picked from disk. */

import { BundleError } from "../errors";
import { sha256 } from "./hash";
import type { FileEntry } from "./manifest";

export type Bytes = Uint8Array<ArrayBuffer>;
/** Called with the number of bytes that have come in since the last call. */
export type Progress = (bytes: number) => void;

export interface BundleFiles {
  readonly name: string;
  /** The text of `manifest.json`. */
  manifest(): Promise<string>;
  /** The content of a file whose size and SHA-256 are those of its entry. Throws BundleError otherwise. */
  read(entry: FileEntry, progress: Progress): Promise<Bytes>;
}

const MANIFEST = "manifest.json";
const CACHE = "palmtop-bundles";

/**
 * A bundle under an address. What was read once is kept by its hash, so that the page opens it again without a network;
 * it is hashed again each time.
 */
export class RemoteFiles implements BundleFiles {
  readonly name: string;
  private readonly base: string;

  constructor(address: string) {
    this.base = address.endsWith("/") ? address : `${address}/`;
    this.name = decodeURIComponent(new URL(this.base).pathname.split("/").at(-2) ?? "") || this.base;
  }

  async manifest(): Promise<string> {
    const address = `${this.base}${MANIFEST}`;
    const cache = await openCache();
    try {
      const response = await fetch(address, { cache: "no-store" });
      if (!response.ok) throw new BundleError(`${address} cannot be read (${response.status}).`);
      const text = await response.text();
      await keep(cache, address, new TextEncoder().encode(text));
      return text;
    } catch (error) {
      const kept = await cache?.match(address);
      if (kept !== undefined) return kept.text();
      if (error instanceof BundleError) throw error;
      throw new BundleError(`${address} cannot be reached. Are you offline, or does that server allow other pages?`);
    }
  }

  async read(entry: FileEntry, progress: Progress): Promise<Bytes> {
    const key = `${new URL("/", self.location.href).href}.palmtop/${entry.sha256}`;
    const cache = await openCache();
    const kept = await cache?.match(key);
    if (kept !== undefined) {
      const bytes = new Uint8Array(await kept.arrayBuffer());
      if ((await wrong(entry, bytes)) === null) {
        progress(bytes.length);
        return bytes;
      }
      await cache?.delete(key);
    }
    const bytes = await this.download(entry, progress);
    const problem = await wrong(entry, bytes);
    if (problem !== null) throw new BundleError(problem);
    await keep(cache, key, bytes);
    return bytes;
  }

  private async download(entry: FileEntry, progress: Progress): Promise<Bytes> {
    const address = this.base + entry.path.split("/").map(encodeURIComponent).join("/");
    let response: Response;
    try {
      response = await fetch(address, { cache: "no-store" });
    } catch {
      throw new BundleError(`${entry.path} cannot be reached. Are you offline?`);
    }
    if (!response.ok || response.body === null) {
      throw new BundleError(`${entry.path} is missing from the bundle (${response.status}).`);
    }
    const bytes = new Uint8Array(entry.size);
    let size = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      if (size + value.length > entry.size) {
        await reader.cancel();
        throw new BundleError(`${entry.path} is longer than the manifest says (${entry.size} bytes).`);
      }
      bytes.set(value, size);
      size += value.length;
      progress(value.length);
    }
    return bytes.subarray(0, size);
  }
}

/** A file picked from disk; `path` is what the browser tells: with folders when a folder was picked. */
export interface PickedFile {
  path: string;
  file: File;
}

/** A bundle picked from disk: a folder, or its files in one heap, told apart by size and hash. */
export class PickedFiles implements BundleFiles {
  readonly name: string;
  private readonly root: string;
  private readonly index: File;

  constructor(private readonly picked: readonly PickedFile[]) {
    const manifests = picked.filter(({ path }) => path.split("/").at(-1) === MANIFEST);
    const index = manifests.sort((a, b) => a.path.length - b.path.length)[0];
    if (index === undefined) {
      throw new BundleError(`There is no ${MANIFEST} among what was picked. Pick the folder of a palmtop bundle, or all of its files.`);
    }
    this.index = index.file;
    this.root = index.path.slice(0, -MANIFEST.length);
    this.name = this.root.split("/").at(-2) ?? "files from disk";
  }

  manifest(): Promise<string> {
    return this.index.text();
  }

  async read(entry: FileEntry, progress: Progress): Promise<Bytes> {
    const exact = this.picked.filter(({ path }) => path === this.root + entry.path);
    const named = this.picked.filter(({ file }) => file.name === entry.path.split("/").at(-1));
    let problem = `${entry.path} is missing from the bundle. Pick all of its files.`;
    for (const { file } of exact.length > 0 ? exact : named) {
      if (exact.length === 0 && file.size !== entry.size) continue;
      const bytes = new Uint8Array(await file.arrayBuffer());
      const found = await wrong(entry, bytes);
      if (found === null) {
        progress(bytes.length);
        return bytes;
      }
      problem = found;
    }
    throw new BundleError(problem);
  }
}

async function wrong(entry: FileEntry, bytes: Bytes): Promise<string | null> {
  if (bytes.length !== entry.size) {
    return `${entry.path} has ${bytes.length} bytes, the manifest says ${entry.size}: it was cut or altered.`;
  }
  if ((await sha256(bytes)) !== entry.sha256) {
    return `${entry.path} was altered: its SHA-256 is not the manifest's. Export the bundle again.`;
  }
  return null;
}

/** The store of files; undefined where the browser has none (private windows of some). */
async function openCache(): Promise<Cache | undefined> {
  try {
    return await caches.open(CACHE);
  } catch {
    return undefined;
  }
}

/** Keep a file for later; a full disk is no reason to fail now. */
async function keep(cache: Cache | undefined, key: string, bytes: Bytes): Promise<void> {
  try {
    await cache?.put(key, new Response(bytes));
  } catch {
    // The bundle works all the same, it will be fetched again.
  }
}
