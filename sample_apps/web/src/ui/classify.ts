/** Scores of all labels, as you type. */

import type { Engine } from "../engine/client";
import type { Classified } from "../engine/pipelines";
import { h, languageName, latest, percent, setShare, words } from "./dom";
import type { Examples } from "./examples";

export function classifyView(engine: Engine, examples: Examples, failed: (error: Error) => void): HTMLElement {
  const field = h("textarea", {
    id: "text",
    rows: 2,
    maxlength: 5000,
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    placeholder: "Type something, in any language the model knows",
    "aria-describedby": "timing",
  });
  const best = h("p", { class: "best", id: "best", "aria-live": "polite" });
  const scores = h("ol", { class: "scores", id: "scores", "aria-label": "Scores of all labels" });
  const tokens = h("ul", { class: "tokens", id: "tokens", "aria-label": "Tokens that the model reads" });
  const timing = h("p", { class: "quiet", id: "timing" });
  const rows = new Map<string, { row: HTMLElement; bar: HTMLElement; value: HTMLElement }>();

  const show = (result: Classified, text: string) => {
    const top = result.scores[0]!;
    best.replaceChildren(h("span", { class: "label" }, words(top.label)), h("span", { class: "value" }, percent(top.score)));
    best.dataset.label = top.label;
    for (const { label, score } of result.scores) {
      let entry = rows.get(label);
      if (entry === undefined) {
        const bar = h("span", { class: "bar" });
        const value = h("span", { class: "value" });
        const row = h("li", { "data-label": label }, h("span", { class: "name" }, words(label)), h("span", { class: "track" }, bar), value);
        rows.set(label, (entry = { row, bar, value }));
      }
      entry.row.dataset.score = String(score);
      setShare(entry.bar, score);
      entry.value.textContent = percent(score);
      entry.row.classList.toggle("first", label === top.label);
      scores.append(entry.row); // in the order of the scores
    }
    tokens.replaceChildren(
      ...result.tokens.map(({ text: token, special, unknown }) =>
        h("li", { class: special ? "special" : unknown ? "unknown" : null, title: unknown ? "not in the vocabulary" : null }, token),
      ),
    );
    timing.textContent = `${result.tokens.length} tokens, ${result.milliseconds.toFixed(0)} ms on this device`;
    scores.dataset.text = text;
  };

  const run = latest(async (text: string) => {
    try {
      show(await engine.call("classify", [text]), text);
    } catch (error) {
      failed(error as Error);
    }
  });
  field.addEventListener("input", () => run(field.value));

  const use = (text: string) => {
    field.value = text;
    run(text);
  };
  const chips = examples.map(({ language, texts }) =>
    h(
      "div",
      { class: "examples", role: "group", "aria-label": language === null ? "Examples" : languageName(language), lang: language },
      language !== null && h("span", { class: "quiet", "aria-hidden": "true" }, languageName(language)),
      h("div", { class: "chips" }, ...texts.map((text) => h("button", { type: "button", class: "chip", onclick: () => use(text) }, text))),
    ),
  );
  field.value = examples[0]?.texts[0] ?? "";
  run(field.value);

  return h(
    "div",
    { class: "tool" },
    h("label", { for: "text" }, "Your text"),
    field,
    h("div", { class: "suggestions" }, ...chips),
    best,
    scores,
    h("details", { class: "more" }, h("summary", {}, "Tokens"), tokens),
    timing,
  );
}
