/** How alike a sentence is to others, closest first, as you type. */

import type { Engine } from "../engine/client";
import { h, latest, setShare } from "./dom";
import type { Examples } from "./examples";

export function similarityView(engine: Engine, examples: Examples, failed: (error: Error) => void): HTMLElement {
  const [first = "", ...others] = examples.flatMap(({ texts }) => texts);
  const field = h("textarea", { id: "text", rows: 2, maxlength: 5000, autocomplete: "off", spellcheck: "false", "aria-describedby": "timing" });
  const lines = h("textarea", { id: "others", rows: 5, maxlength: 20000, autocomplete: "off", spellcheck: "false" });
  const ranking = h("ol", { class: "ranking", id: "ranking", "aria-label": "Closest first", "aria-live": "polite" });
  const timing = h("p", { class: "quiet", id: "timing" });
  field.value = first;
  lines.value = others.join("\n");

  const run = latest<void>(async () => {
    const text = field.value;
    const compared = [...new Set(lines.value.split("\n").map((line) => line.trim()))].filter((line) => line !== "").slice(0, 50);
    try {
      const { cosines, milliseconds } = await engine.call("similarity", [text, compared]);
      const order = compared.map((line, at) => ({ line, cosine: cosines[at]! })).sort((a, b) => b.cosine - a.cosine);
      ranking.replaceChildren(
        ...order.map(({ line, cosine }) => {
          const bar = h("span", { class: "bar" });
          setShare(bar, cosine);
          return h(
            "li",
            { "data-line": line, "data-cosine": String(cosine) },
            h("span", { class: "line" }, line),
            h("span", { class: "value" }, cosine.toFixed(3)),
            h("span", { class: "track" }, bar),
          );
        }),
      );
      ranking.dataset.text = [text, ...compared].join("\n");
      timing.textContent = `${compared.length} sentences, ${milliseconds.toFixed(0)} ms on this device`;
    } catch (error) {
      failed(error as Error);
    }
  });
  field.addEventListener("input", () => run());
  lines.addEventListener("input", () => run());
  run();

  return h(
    "div",
    { class: "tool" },
    h("label", { for: "text" }, "A sentence"),
    field,
    h("label", { for: "others" }, "Compared with, one a line"),
    lines,
    h("h2", {}, "Closest first"),
    ranking,
    timing,
  );
}
