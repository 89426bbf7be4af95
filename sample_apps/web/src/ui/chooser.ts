/** The ways to open a bundle: one that comes with the app, an address, or files from disk. */

import type { PickedFile } from "../bundle/files";
import { byId, h } from "./dom";
import type { Shipped } from "./examples";

export type Source = { address: string } | { files: PickedFile[] };

export function setUpChooser(shipped: readonly Shipped[], open: (source: Source) => void): void {
  const dialog = byId<HTMLDialogElement>("chooser");
  const chosen = (source: Source) => {
    dialog.close();
    open(source);
  };
  const picker = (id: string, folder: boolean) => {
    const input = h("input", { type: "file", id, multiple: true, webkitdirectory: folder, class: "hidden", tabindex: -1, "aria-hidden": "true" });
    input.addEventListener("change", () => {
      const files = [...(input.files ?? [])].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
      input.value = "";
      if (files.length > 0) chosen({ files });
    });
    return input;
  };
  const folder = picker("folder", true);
  const heap = picker("files", false);
  const address = h("input", { type: "url", id: "address", required: true, placeholder: "https://…/my.bundle", autocomplete: "off", spellcheck: "false" });
  const form = h(
    "form",
    { class: "row" },
    address,
    h("button", { type: "submit", class: "button" }, "Open"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    chosen({ address: address.value });
  });

  dialog.replaceChildren(
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id: "chooser-title" }, "Open a bundle"),
      h("button", { type: "button", class: "button plain", onclick: () => dialog.close() }, "Close"),
    ),
    ...(shipped.length === 0
      ? []
      : [
          h("h3", {}, "With this page"),
          h(
            "div",
            { class: "row wrap" },
            ...shipped.map(({ path }) =>
              h("button", { type: "button", class: "chip", onclick: () => chosen({ address: shippedAddress(path) }) }, path),
            ),
          ),
        ]),
    h("h3", {}, "From this device"),
    h("p", { class: "quiet" }, "Pick the folder that palmtop export made, or select all of its files. Or drop it on the page."),
    h(
      "div",
      { class: "row wrap" },
      h("button", { type: "button", class: "button", onclick: () => folder.click() }, "Pick a folder"),
      h("button", { type: "button", class: "button plain", onclick: () => heap.click() }, "Pick files"),
      folder,
      heap,
    ),
    h("h3", {}, h("label", { for: "address" }, "From an address")),
    form,
  );
  byId("open").addEventListener("click", () => dialog.showModal());
  acceptDrops((files) => chosen({ files }));
}

export const shippedAddress = (path: string): string => new URL(`bundles/${path}/`, location.href).href;

function acceptDrops(dropped: (files: PickedFile[]) => void): void {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const entries = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
    const files = (await Promise.all(entries.map(filesOf))).flat();
    if (files.length > 0) dropped(files);
  });
}

async function filesOf(entry: FileSystemEntry): Promise<PickedFile[]> {
  if (entry.isFile) {
    const file = await new Promise<File>((done, failed) => (entry as FileSystemFileEntry).file(done, failed));
    return [{ path: entry.fullPath.slice(1), file }];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: PickedFile[] = [];
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((done, failed) => reader.readEntries(done, failed));
    if (some.length === 0) return found;
    found.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}
