// Keeps the page itself for use without a network. Bundles are kept by the page, file by file, by their hash.
const SHELL = "palmtop-shell-__VERSION__";
const FILES = __FILES__;

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(SHELL)
      // The list of bundles is not part of every page; the first visit asked for it before this worker was there.
      .then((cache) => Promise.all([cache.addAll(FILES), cache.add("bundles/index.json").catch(() => undefined)]))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    caches
      .keys()
      .then((names) => names.filter((name) => name.startsWith("palmtop-shell-") && name !== SHELL))
      .then((old) => Promise.all(old.map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const scope = self.registration.scope;
  if (request.method !== "GET" || !request.url.startsWith(scope)) return;
  const path = new URL(request.url).pathname.slice(new URL(scope).pathname.length);
  if (path === "bundles/index.json") event.respondWith(newest(request));
  else if (FILES.includes(path || "./")) event.respondWith(kept(path || "./", request));
});

async function kept(path, request) {
  return (await (await caches.open(SHELL)).match(path)) ?? fetch(request);
}

async function newest(request) {
  const cache = await caches.open(SHELL);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const old = await cache.match(request);
    if (old) return old;
    throw error;
  }
}
