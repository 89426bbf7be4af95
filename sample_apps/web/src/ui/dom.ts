/** Elements without a framework. Text is always set as text, never as HTML. */

type Child = Node | string | null | undefined | false;
type Props = Record<string, string | number | boolean | null | undefined | ((event: Event) => void)>;

/** An element: `h("button", { class: "small", onclick: go }, "Go")`. */
export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child): child is Node | string => Boolean(child)));
  return element;
}

/** The element of an id that the page always has. */
export function byId<Element extends HTMLElement = HTMLElement>(id: string): Element {
  return document.getElementById(id) as Element;
}

export function bytes(count: number): string {
  if (count < 1e3) return `${count} B`;
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

export const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

/** Let a bar fill this share of its track; below 0 it is empty. */
export function setShare(bar: HTMLElement, share: number): void {
  bar.style.transform = `translateX(${(Math.min(Math.max(share, 0), 1) - 1) * 100}%)`;
}

/** Labels of models are identifiers; people read words. */
export const words = (label: string): string => label.replaceAll("_", " ");

export function languageName(code: string): string {
  try {
    const name = new Intl.DisplayNames([code], { type: "language" }).of(code) ?? code;
    return name.charAt(0).toLocaleUpperCase(code) + name.slice(1);
  } catch {
    return code;
  }
}

/** Runs the newest of many calls, one at a time: while one runs, only the last that came in waits. */
export function latest<Value>(run: (value: Value) => Promise<void>): (value: Value) => void {
  let running = false;
  let next: { value: Value } | null = null;
  const loop = async () => {
    running = true;
    while (next !== null) {
      const { value } = next;
      next = null;
      await run(value);
    }
    running = false;
  };
  return (value) => {
    next = { value };
    if (!running) void loop();
  };
}
