"""What tests of the web app need: node, the built app, a server of files, and a browser driven over its pipe."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).resolve().parents[2] / "sample_apps" / "web"
PATIENCE = 120  # seconds for an answer or a change of the page, on the slowest machine
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "about:blank",
)
# Chromium reads commands from descriptor 3 and writes to 4. A child process puts them there, and becomes the browser.
_BECOME = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def needed(program: str) -> str:
    """The path of a program. Without it the test is skipped, or fails in CI, which installs it."""
    found = shutil.which(program)
    if found is None:
        _absent(f"{program} is not installed (Debian: apt-get install {'nodejs' if program == 'node' else program})")
    return str(found)


def built(name: str) -> Path:
    """A file or folder of the built app; skipped (in CI: failed) when it was not built, failed when it is stale."""
    needed("node")
    stamp = WEB / "build" / ".built"
    if not stamp.is_file():
        _absent("the web app is not built: run make web-build")
    sources = [path for folder in ("src", "scripts", "public") for path in (WEB / folder).rglob("*") if path.is_file()]
    newest = max([*sources, WEB / "index.html", WEB / "package-lock.json"], key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > stamp.stat().st_mtime:
        pytest.fail(f"{newest.relative_to(WEB)} is newer than the built web app: run make web-build")
    return WEB / name


def _absent(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class _Files(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 (as the base class has it)
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, http.server.ThreadingHTTPServer]]:
    """Serve the files of a folder on this machine: the address, and the server, which a test may shut down."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Browser:
    """One page of a headless Chromium, over the DevTools protocol."""

    def __init__(self, profile: Path, program: str):
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        command = [sys.executable, "-c", _BECOME, str(to_read), str(to_write), program]
        self._process = subprocess.Popen(
            [*command, *_ARGUMENTS[:-1], f"--user-data-dir={profile}", _ARGUMENTS[-1]],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []  # what the page threw, or wrote to the console as an error
        try:
            self._attach()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _attach(self) -> None:
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], PATIENCE)[0]:
                raise TimeoutError(f"the browser said nothing for {PATIENCE} s; the page: {self.errors}")
            data = os.read(self._in, 1 << 16)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str([entry.get("value", entry.get("description")) for entry in params["args"]]))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "failed"))
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        """Go to an address, and wait until its page is there."""
        self.evaluate("window.before = true")
        self.send("Page.navigate", url=address)
        self.wait_for("!window.before && document.readyState === 'complete'")

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true in the page, and return its value."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # the page is being replaced, or is not there yet
                value = self.evaluate(f"((found) => found instanceof Node ? true : found)({expression})")
                if value:
                    return value
            time.sleep(0.03)
        shown = self.evaluate("document.body.innerText.slice(0, 500)")
        raise TimeoutError(f"{expression} did not come true in {PATIENCE} s; the page: {shown!r}, {self.errors}")

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field, as typing does."""
        quoted, text = json.dumps(selector), json.dumps(text)
        self.evaluate(
            f"(() => {{ const field = document.querySelector({quoted}); field.focus(); field.value = {text};"
            " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        """Pick files from disk."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)

    def resize(self, width: int, height: int, phone: bool = False, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, whole: bool = True) -> None:
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._session = None
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)
