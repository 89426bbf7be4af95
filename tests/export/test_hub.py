"""Hub ids are downloaded by `huggingface_hub`, here from a hub on this machine that holds one tiny repository."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from palmtop.export.source import open_source
from palmtop.runtime.errors import DamagedError, RequestError

from ..support.tiny import tiny_checkpoint
from .test_source import AUTO_MAP, REMOTE

FIRST, SECOND, PICKLED, STRANGE = "1" * 40, "2" * 40, "3" * 40, "4" * 40
REPOSITORY = "someone/tiny"


@dataclass
class Hub:
    """A hub's answers to `snapshot_download`: commits are folders, revisions names of commits."""

    url: str
    commits: dict[str, Path]
    revisions: dict[str, str]
    downloaded: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request."""
        path = urllib.parse.unquote(path.partition("?")[0])
        found = re.fullmatch(rf"/api/models/{REPOSITORY}(?:/(revision|tree)/([^/]+))?", path)
        if found:
            commit = self.resolve(found[2] or "main")
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            files = sorted(p for p in self.commits[commit].rglob("*") if p.is_file())
            names = {p.relative_to(self.commits[commit]).as_posix(): p for p in files}
            if found[1] == "tree":
                entries = [
                    {"type": "file", "path": name, "size": p.stat().st_size, "oid": etag(p)}
                    for name, p in names.items()
                ]
                return 200, {}, json.dumps(entries).encode()
            siblings = [{"rfilename": name} for name in names]
            return 200, {}, json.dumps({"id": REPOSITORY, "sha": commit, "siblings": siblings}).encode()
        found = re.fullmatch(rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", path)
        commit = self.resolve(found[1]) if found else None
        if found and commit and (self.commits[commit] / found[2]).is_file():
            file = self.commits[commit] / found[2]
            self.downloaded.append(found[2])
            return 200, {"ETag": f'"{etag(file)}"', "X-Repo-Commit": commit}, file.read_bytes()
        return 404, {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"}, b"{}"

    def resolve(self, revision: str) -> str | None:
        commit = self.revisions.get(revision, revision)
        return commit if commit in self.commits else None


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def commits(tmp_path_factory) -> dict[str, Path]:
    """Two commits with other weights, one with a pickle alone, one with code of its own."""
    root = tmp_path_factory.mktemp("hub")
    made = {
        FIRST: tiny_checkpoint(root / "first", "bert", "text-classification", seed=1),
        SECOND: tiny_checkpoint(root / "second", "bert", "text-classification", seed=2),
    }
    made[PICKLED] = Path(shutil.copytree(made[FIRST], root / "pickled"))
    (made[PICKLED] / "model.safetensors").rename(made[PICKLED] / "pytorch_model.bin")
    made[STRANGE] = Path(shutil.copytree(made[FIRST], root / "strange"))
    config = json.loads((made[STRANGE] / "config.json").read_text())
    (made[STRANGE] / "config.json").write_text(json.dumps({**config, "model_type": "strange", "auto_map": AUTO_MAP}))
    (made[STRANGE] / "modeling_strange.py").write_text(REMOTE)
    (made[SECOND] / "onnx").mkdir()
    (made[SECOND] / "onnx" / "model.onnx").write_bytes(b"gigabytes")
    return made


@pytest.fixture
def hub(commits, tmp_path, monkeypatch):
    """A running hub, and a `huggingface_hub` that knows no other."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = served.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    served = Hub(url, commits, {"main": SECOND, "v1": FIRST, "old": PICKLED, "strange": STRANGE})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    # huggingface_hub reads HF_ENDPOINT and HF_HUB_CACHE once, when it is imported.
    point_at(monkeypatch, url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def point_at(monkeypatch, url: str) -> None:
    """What HF_ENDPOINT does."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


def same_weights(source, folder: Path) -> bool:
    one, other = source.load_model().state_dict(), open_source(folder).load_model().state_dict()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_hub_id_is_its_main_branch(hub, commits):
    source = open_source(REPOSITORY)
    assert (source.id, source.revision) == (REPOSITORY, SECOND)
    assert same_weights(source, commits[SECOND])
    assert source.weights_sha256() == open_source(commits[SECOND]).weights_sha256()


@pytest.mark.parametrize("revision", ["v1", FIRST])
def test_the_revision_is_honoured(hub, commits, revision):
    source = open_source(REPOSITORY, revision=revision)
    assert source.revision == FIRST
    assert same_weights(source, commits[FIRST])
    assert not same_weights(source, commits[SECOND])


def test_only_what_an_export_needs_is_downloaded(hub):
    open_source(REPOSITORY)
    assert "model.safetensors" in hub.downloaded
    assert "onnx/model.onnx" not in hub.downloaded


def test_pickles_are_named_and_not_downloaded(hub):
    with pytest.raises(DamagedError, match=r"pytorch_model\.bin"):
        open_source(REPOSITORY, revision="old")
    assert "pytorch_model.bin" not in hub.downloaded


def test_a_finished_download_is_used_when_the_hub_is_away(hub, monkeypatch):
    before = open_source(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_source(REPOSITORY).weights_sha256() == before.weights_sha256()


def test_code_is_downloaded_and_run_only_when_trusted(hub, tmp_path, monkeypatch):
    mark = tmp_path / "ran"
    monkeypatch.setenv("PALMTOP_TEST_MARK", str(mark))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(DamagedError, match="--trust-remote-code"):
        open_source(REPOSITORY, revision="strange")
    assert "modeling_strange.py" not in hub.downloaded
    assert not mark.exists()
    model = open_source(REPOSITORY, revision="strange", trust_remote_code=True).load_model()
    assert type(model).__name__ == "StrangeForSequenceClassification"


@pytest.mark.parametrize(
    ("name", "revision", "says"),
    [
        ("someone/nothing", None, "someone/nothing"),
        ("nothing", None, "'nothing'"),
        (REPOSITORY, "v9", "at revision v9"),
        (REPOSITORY, "9" * 40, "at revision 999"),
    ],
)
def test_what_the_hub_does_not_have_is_a_wrong_request(hub, name, revision, says):
    with pytest.raises(RequestError) as caught:
        open_source(name, revision=revision)
    assert says in str(caught.value)
    assert "Remedy" in str(caught.value)


@pytest.mark.parametrize("name", ["some one/tiny", "a--b/c", "someone/tiny?x"])
def test_what_can_be_no_hub_id_is_said_to_be_none(hub, name):
    with pytest.raises(RequestError, match="not a hub id"):
        open_source(name)


def test_a_hub_that_is_away_is_a_wrong_request(hub, monkeypatch):
    point_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(RequestError, match="the network"):
        open_source(REPOSITORY)


def test_the_command_line_exports_a_revision_of_a_hub_id(hub, commits, palmtop, tmp_path):
    bundle = tmp_path / "tiny.bundle"
    done = palmtop("export", REPOSITORY, "--revision", "v1", "--to", "coreml", "-o", bundle, "--json")
    assert done.code == 0
    source = json.loads((bundle / "manifest.json").read_text())["source"]
    assert (source["id"], source["revision"]) == (REPOSITORY, FIRST)
    assert source["weights_sha256"] == open_source(commits[FIRST]).weights_sha256()
    assert done.json["parity"]["passed"]
    checked = palmtop("verify", bundle, "--reference", REPOSITORY, "--revision", "v1")
    assert checked.code == 0
    assert palmtop("verify", bundle, "--reference", REPOSITORY).code == 1
