/** Texts to begin with: those of the app for its own bundles and for comparing, else those of the bundle itself. */

import examples from "../../examples.json";
import type { Opened } from "../engine/protocol";

export type Examples = { language: string | null; texts: string[] }[];

/** What stands in `bundles/index.json`: the bundles that come with the app. */
export interface Shipped {
  path: string;
  examples: Examples;
}

/** The bundles that come with the app; none when it was built without. */
export async function shippedBundles(): Promise<Shipped[]> {
  try {
    const response = await fetch("bundles/index.json");
    return response.ok ? ((await response.json()) as { bundles: Shipped[] }).bundles : [];
  } catch {
    return [];
  }
}

export function examplesFor(opened: Opened, shipped: Shipped | undefined): Examples {
  if (shipped !== undefined) return shipped.examples;
  return opened.kind === "sentence-similarity" ? examples[opened.kind] : [{ language: null, texts: opened.texts }];
}
