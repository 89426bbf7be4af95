/** The Markdown of model cards as elements: headings, lists, tables, code, quotes, emphasis, links. No HTML. */

import { h } from "./dom";

/** The elements of a card; its front matter is left out. Headings start at `level`. */
export function markdown(text: string, level = 3): HTMLElement[] {
  const lines = text.replace(/^---\n[\s\S]*?\n---\n/, "").split("\n");
  const out: HTMLElement[] = [];
  const takeWhile = (test: (line: string) => boolean) => {
    const taken: string[] = [];
    while (lines.length > 0 && test(lines[0]!)) taken.push(lines.shift()!);
    return taken;
  };
  while (lines.length > 0) {
    const line = lines[0]!;
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (line.trim() === "") lines.shift();
    else if (heading) {
      lines.shift();
      const tag = `h${Math.min(heading[1]!.length + level - 1, 6)}` as "h3";
      out.push(h(tag, {}, ...inline(heading[2]!)));
    } else if (line.startsWith("```")) {
      lines.shift();
      const code = takeWhile((next) => !next.startsWith("```"));
      lines.shift();
      out.push(h("pre", { tabindex: 0 }, h("code", {}, code.join("\n"))));
    } else if (line.startsWith("|")) out.push(table(takeWhile((next) => next.startsWith("|"))));
    else if (LIST.test(line)) out.push(list(takeWhile((next) => LIST.test(next) || /^\s+\S/.test(next))));
    else if (line.startsWith(">")) {
      const quoted = takeWhile((next) => next.startsWith(">")).map((next) => next.replace(/^>\s?/, ""));
      out.push(h("blockquote", {}, ...markdown(quoted.join("\n"), level)));
    } else {
      const paragraph = [lines.shift()!, ...takeWhile((next) => next.trim() !== "" && !/^(#|```|\||>)/.test(next) && !LIST.test(next))];
      out.push(h("p", {}, ...inline(paragraph.join(" "))));
    }
  }
  return out;
}

const LIST = /^\s{0,3}(?:[-*+]|\d+\.)\s+/;

function list(lines: string[]): HTMLElement {
  const items: string[] = [];
  for (const line of lines) {
    if (LIST.test(line)) items.push(line.replace(LIST, ""));
    else items.push(`${items.pop() ?? ""} ${line.trim()}`);
  }
  return h(/^\s*\d/.test(lines[0]!) ? "ol" : "ul", {}, ...items.map((item) => h("li", {}, ...inline(item))));
}

function table(lines: string[]): HTMLElement {
  const rows = lines.map((line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim()));
  const [head, ...body] = rows.filter((row) => !row.every((cell) => /^:?-+:?$/.test(cell)));
  const cells = (tag: "th" | "td", row: string[]) => row.map((cell) => h(tag, tag === "th" ? { scope: "col" } : {}, ...inline(cell)));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, h("tr", {}, ...cells("th", head ?? []))), h("tbody", {}, ...body.map((row) => h("tr", {}, ...cells("td", row))))),
  );
}

function inline(text: string): (Node | string)[] {
  const out: (Node | string)[] = [];
  const pattern = /`([^`]+)`|\*\*(.+?)\*\*|(?<![\w*])\*([^*\s][^*]*)\*|\[([^\]]+)\]\(([^)\s]+)\)/gu;
  let done = 0;
  for (const match of text.matchAll(pattern)) {
    out.push(text.slice(done, match.index));
    const [whole, code, strong, emphasis, label, address] = match;
    if (code !== undefined) out.push(h("code", {}, code));
    else if (strong !== undefined) out.push(h("strong", {}, ...inline(strong)));
    else if (emphasis !== undefined) out.push(h("em", {}, ...inline(emphasis)));
    else if (/^https?:\/\//.test(address!)) out.push(h("a", { href: address, rel: "noreferrer", target: "_blank" }, ...inline(label!)));
    else out.push(...inline(label!)); // a file of the checkpoint, which is not here
    done = match.index + whole.length;
  }
  out.push(text.slice(done));
  return out;
}
