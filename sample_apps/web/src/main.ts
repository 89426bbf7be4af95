/** The page: opens a bundle, shows its tool and what it says about itself. */

import { Engine } from "./engine/client";
import type { Opened } from "./engine/protocol";
import { aboutView } from "./ui/about";
import { setUpChooser, shippedAddress, type Source } from "./ui/chooser";
import { classifyView } from "./ui/classify";
import { byId, bytes, h } from "./ui/dom";
import { examplesFor, type Shipped, shippedBundles } from "./ui/examples";
import { similarityView } from "./ui/similarity";

const VIEWS = { "text-classification": classifyView, "sentence-similarity": similarityView };

const engine = new Engine();
const stage = byId("stage");
const about = byId("about");
let shipped: Shipped[] = [];
let opening = 0;

function showError(error: Error): void {
  stage.querySelector(".error")?.remove();
  const message = h("p", { class: "error", role: "alert", id: "error" }, error.message);
  stage.prepend(message);
  message.scrollIntoView({ block: "nearest" });
}

async function open(source: Source): Promise<void> {
  const mine = ++opening;
  const bar = h("progress", { id: "progress", "aria-label": "Loading the bundle" });
  const text = h("p", { class: "quiet", id: "loading-text" }, "Reading the manifest…");
  const loading = h("div", { class: "loading", id: "loading", role: "status" }, text, bar);
  const before = [...stage.childNodes].filter((node) => !(node instanceof HTMLElement && node.matches(".error, .loading, .welcome")));
  stage.replaceChildren(loading, ...before);
  try {
    const opened = await engine.open(source, (step, loaded, total) => {
      bar.max = total;
      bar.value = loaded;
      text.textContent =
        step === "reading" ? `Reading and hashing ${bytes(loaded)} of ${bytes(total)}` : "Hashes match. Starting the model…";
    });
    if (mine !== opening) return;
    show(opened, source);
  } catch (error) {
    if (mine !== opening) return;
    loading.remove();
    showError(error as Error);
  }
}

function show(opened: Opened, source: Source): void {
  const { manifest } = opened;
  const mine = "address" in source ? shipped.find(({ path }) => shippedAddress(path) === source.address) : undefined;
  const view = VIEWS[opened.kind];
  document.title = `${manifest.source.id} · palmtop`;
  stage.replaceChildren(
    h("p", { class: "eyebrow" }, opened.kind.replaceAll("-", " ")),
    h("h1", { id: "title" }, manifest.source.id),
    view(engine, examplesFor(opened, mine), showError),
  );
  about.replaceChildren(...aboutView(opened, engine));
  document.body.dataset.open = manifest.identity;
}

/** Tell whether the page would open without a network. */
function setUpOffline(): void {
  const pill = byId("network");
  const tell = (ready: boolean) => {
    pill.hidden = !ready && navigator.onLine;
    pill.textContent = navigator.onLine ? "Ready for offline use" : "Offline";
    pill.dataset.ready = String(ready);
  };
  let ready = false;
  addEventListener("online", () => tell(ready));
  addEventListener("offline", () => tell(ready));
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  navigator.serviceWorker
    .register("sw.js")
    .then(() => navigator.serviceWorker.ready)
    .then(() => tell((ready = true)))
    .catch(() => tell(false)); // private windows refuse; the page works online all the same
}

async function start(): Promise<void> {
  setUpOffline();
  shipped = await shippedBundles();
  setUpChooser(shipped, (source) => void open(source));
  const asked = new URLSearchParams(location.search).get("bundle");
  const address = asked !== null ? new URL(asked, location.href).href : shipped[0] && shippedAddress(shipped[0].path);
  if (address !== undefined) {
    await open({ address });
    return;
  }
  stage.replaceChildren(
    h(
      "div",
      { class: "welcome" },
      h("h1", { id: "title" }, "Open a bundle"),
      h("p", {}, "This page runs models that palmtop export has made, right here in the browser."),
      h("button", { type: "button", class: "button", onclick: () => byId<HTMLDialogElement>("chooser").showModal() }, "Choose a bundle"),
    ),
  );
}

void start();
