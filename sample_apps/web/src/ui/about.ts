/** What the bundle says about itself: facts, license, checks and the model card. */

import type { Engine } from "../engine/client";
import type { Opened } from "../engine/protocol";
import { byId, bytes, h } from "./dom";
import { markdown } from "./markdown";

export function aboutView(opened: Opened, engine: Engine): HTMLElement[] {
  const { manifest, artifact } = opened;
  const parity = manifest.parity.artifacts?.[artifact.target];
  const license = manifest.source.license;
  const facts: [string, string | null][] = [
    ["Model", manifest.source.architecture.replace(/([a-z])([A-Z])/g, "$1\u200b$2")],
    ["Size", `${bytes(opened.modelBytes)}, ${artifact.precision}`],
    ["Tokenizer", `${manifest.tokenizer!.kind}, ${opened.vocabulary.toLocaleString("en")} tokens`],
    ["Longest text", `${opened.maxLength} tokens`],
    ["Weights", manifest.source.weights_sha256.slice(0, 12)],
    ["Made by", `palmtop ${manifest.producer.palmtop ?? ""}`],
  ];
  return [
    h(
      "section",
      { class: "card" },
      h("h2", {}, "About this model"),
      h("dl", {}, ...facts.flatMap(([name, value]) => (value === null ? [] : [h("dt", {}, name), h("dd", {}, value)]))),
    ),
    h(
      "section",
      { class: "card" },
      h("h2", {}, "License"),
      h("p", { class: "license", id: "license" }, license ?? "The checkpoint states none: ask its authors before you use it."),
      opened.card !== "" && h("button", { type: "button", class: "button plain", id: "show-card", onclick: () => showCard(opened) }, "Read the model card"),
    ),
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Trust"),
      h(
        "ul",
        { class: "ticks", id: "trust" },
        h("li", { class: "good" }, `${opened.checked} files read, every SHA-256 as the manifest says`),
        h("li", { class: "good" }, "The model carries the identity of this manifest"),
        parity?.status !== undefined &&
          h(
            "li",
            { class: parity.status === "passed" ? "good" : "bad" },
            `Parity with the reference at export: ${parity.status}` + (parity.max_error === undefined ? "" : `, largest error ${parity.max_error.toExponential(1)}`),
          ),
        opened.unused.length > 0 && h("li", {}, `${opened.unused.length} files for other readers were left alone`),
      ),
      checkButton(engine),
    ),
  ];
}

function checkButton(engine: Engine): HTMLElement {
  const result = h("ul", { class: "ticks", id: "checks", "aria-live": "polite" });
  const line = (name: string, passed: number, vectors: number, more: string) =>
    h("li", { class: passed === vectors ? "good" : "bad" }, `${name}: ${passed} of ${vectors} golden vectors${more}`);
  const button = h("button", { type: "button", class: "button plain", id: "check" }, "Check it on this device");
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Checking…";
    try {
      const { tokenizer, model } = await engine.call("check", []);
      result.replaceChildren(
        line("Tokenizer", tokenizer.passed, tokenizer.vectors, ""),
        line("Model", model.passed, model.vectors, `, largest error ${model.error.toExponential(1)}`),
        ...tokenizer.differences.map((text) => h("li", { class: "bad" }, text.slice(0, 200))),
      );
    } catch (error) {
      result.replaceChildren(h("li", { class: "bad" }, (error as Error).message));
    }
    button.disabled = false;
    button.textContent = "Check again";
  });
  return h("div", {}, result, button);
}

function showCard(opened: Opened): void {
  const dialog = byId<HTMLDialogElement>("card");
  const close = h("button", { type: "button", class: "button plain", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(
    h("div", { class: "dialog-head" }, h("h2", { id: "card-title" }, "Model card"), close),
    h("div", { class: "prose", lang: "en" }, ...markdown(opened.card)),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
}
