/** The worker: holds the open bundle and does all the work, so that the page stays quick under the fingers. */

import { type Bundle, openBundle } from "../bundle/bundle";
import { PickedFiles, RemoteFiles } from "../bundle/files";
import { BundleError } from "../errors";
import { runChecks } from "./checks";
import { Model } from "./model";
import { classify, cosine, embed, kindOf, outputOf } from "./pipelines";
import type { Calls, Opened, Reply, Request } from "./protocol";

let current: { bundle: Bundle; model: Model; vectors: Map<string, Promise<Float32Array>> } | null = null;

type Source = Calls["open"]["args"][0];

async function open(source: Source, tell: (reply: { stage: "reading" | "starting"; loaded: number; total: number }) => void) {
  const files = "address" in source ? new RemoteFiles(source.address) : new PickedFiles(source.files);
  let size = { loaded: 0, total: 0 };
  const bundle = await openBundle(files, (loading) => tell({ stage: "reading", ...(size = loading) }));
  outputOf(bundle);
  tell({ stage: "starting", ...size });
  const model = await Model.open(bundle);
  await current?.model.close();
  current = { bundle, model, vectors: new Map() };
  return opened(bundle, model);
}

function opened(bundle: Bundle, model: Model): Opened {
  const texts = bundle.golden
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => (JSON.parse(line) as { text?: string | null }).text ?? "")
    .filter((text) => text.trim().length >= 8 && text.length <= 60);
  return {
    name: bundle.name,
    kind: kindOf(bundle),
    manifest: bundle.manifest,
    artifact: bundle.artifact,
    card: bundle.card,
    texts: [...new Set(texts)].slice(0, 6),
    modelBytes: bundle.externalData.reduce((sum, entry) => sum + entry.data.length, bundle.model.length),
    vocabulary: bundle.tokenizer.spec.vocabulary.length,
    maxLength: model.maxLength,
    checked: bundle.checked,
    unused: bundle.unused,
  };
}

/** Each text is embedded once, however often it is compared. */
function vectorOf(text: string): Promise<Float32Array> {
  const { bundle, model, vectors } = current!;
  const known = vectors.get(text);
  if (known !== undefined) return known;
  if (vectors.size > 500) vectors.clear();
  const vector = embed(bundle, model, text);
  vectors.set(text, vector);
  return vector;
}

async function similarity(text: string, others: string[]): Promise<Calls["similarity"]["result"]> {
  const start = performance.now();
  const first = await vectorOf(text);
  const cosines: number[] = [];
  for (const other of others) cosines.push(cosine(first, await vectorOf(other)));
  return { cosines, milliseconds: performance.now() - start };
}

function answer(request: Request): Promise<unknown> {
  const { id } = request;
  if (request.name === "open") return open(request.args[0], (stage) => reply({ id, ...stage }));
  if (current === null) throw new BundleError("No bundle is open.");
  switch (request.name) {
    case "classify":
      return classify(current.bundle, current.model, ...request.args);
    case "similarity":
      return similarity(...request.args);
    case "check":
      return runChecks(current.bundle, current.model);
  }
}

const reply = (message: Reply) => self.postMessage(message);

// One request at a time, in order: ONNX Runtime runs one at a time as well.
let queue: Promise<void> = Promise.resolve();
self.onmessage = ({ data: request }: MessageEvent<Request>) => {
  queue = queue.then(async () => {
    try {
      reply({ id: request.id, result: await answer(request) });
    } catch (error) {
      const { message } = error as Error;
      reply({ id: request.id, error: message, expected: error instanceof BundleError });
    }
  });
};
