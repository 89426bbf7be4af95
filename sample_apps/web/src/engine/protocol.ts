/** What the page and its worker say to each other. */

import type { PickedFile } from "../bundle/files";
import type { Manifest } from "../bundle/manifest";
import type { Checks } from "./checks";
import type { Classified, Kind } from "./pipelines";

/** What the page knows of the open bundle. */
export interface Opened {
  name: string;
  kind: Kind;
  manifest: Manifest;
  artifact: Manifest["artifacts"][number];
  card: string;
  /** Short texts of the bundle's golden vectors. */
  texts: string[];
  modelBytes: number;
  vocabulary: number;
  maxLength: number;
  checked: number;
  unused: string[];
}

export interface Calls {
  open: { args: [source: { address: string } | { files: PickedFile[] }]; result: Opened };
  classify: { args: [text: string]; result: Classified };
  /** The cosine of the first text with each of the others. */
  similarity: { args: [text: string, others: string[]]; result: { cosines: number[]; milliseconds: number } };
  check: { args: []; result: Checks };
}

export type Stage = "reading" | "starting";

export type Request = { [Name in keyof Calls]: { id: number; name: Name; args: Calls[Name]["args"] } }[keyof Calls];

export type Reply =
  | { id: number; result: unknown }
  | { id: number; error: string; expected: boolean }
  | { id: number; stage: Stage; loaded: number; total: number };
