import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { defineConfig, type Plugin } from "vite";

/** Writes the service worker, which has to know every file of the finished page. */
function serviceWorker(): Plugin {
  let out = "dist";
  return {
    name: "palmtop-service-worker",
    apply: "build",
    configResolved: (config) => {
      out = resolve(config.root, config.build.outDir);
    },
    closeBundle: () => {
      const files = readdirSync(out, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && entry.name !== "sw.js")
        .map((entry) => relative(out, join(entry.parentPath ?? entry.path, entry.name)).replaceAll("\\", "/"))
        .filter((path) => path !== "index.html" && !path.startsWith("bundles/"))
        .sort();
      const hash = createHash("sha256");
      for (const path of ["index.html", ...files]) hash.update(path).update(readFileSync(join(out, path)));
      const source = readFileSync(resolve(__dirname, "src/sw.js"), "utf8")
        .replace("__VERSION__", hash.digest("hex").slice(0, 12))
        .replace("__FILES__", JSON.stringify(["./", ...files]));
      writeFileSync(join(out, "sw.js"), source);
    },
  };
}

export default defineConfig({
  base: "./", // the page works in any folder of any server
  appType: "mpa", // a file that is not there is not there, when vite serves it too
  build: { target: "es2022", assetsInlineLimit: 0, chunkSizeWarningLimit: 2000 },
  worker: { format: "es" },
  server: { fs: { allow: ["../.."] } },
  plugins: [serviceWorker()],
});
