"""A bundle is opened only when what its manifest names is there, is what it was, and lies inside."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from palmtop.runtime import backends
from palmtop.runtime.bundle import Bundle, sha256_file
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.manifest import MANIFEST_NAME, Artifact, File, Manifest, ModelSource, TensorSpec

CONTENT = {
    "onnx/model.onnx": ("artifact", b"graph"),
    "coreml/model.mlpackage/Manifest.json": ("artifact", b"{}"),
    "coreml/model.mlpackage/Data/weights.bin": ("artifact", b"\x00" * 64),
    "golden.jsonl": ("golden", b"{}\n"),
    "parity.json": ("parity", b"{}\n"),
    "README.md": ("card", b"# Card\n"),
}
# What `Bundle.open` hashes, and what only `check_files` does.
SMALL = ("golden.jsonl", "parity.json", "README.md")
LARGE = ("onnx/model.onnx", "coreml/model.mlpackage/Data/weights.bin")


def manifest(files: tuple[File, ...], **changes) -> Manifest:
    output = (TensorSpec("output", "float32", ()),)
    artifacts = (
        Artifact("onnx", "onnx/model.onnx", "fp32", (), output),
        Artifact("coreml", "coreml/model.mlpackage", "fp16", (), output),
    )
    made = Manifest(ModelSource("hand", None, "0" * 64, "Hand"), "module", artifacts, {}, files)
    return dataclasses.replace(made, **changes).with_identity()


def write(root: Path, made: Manifest) -> None:
    (root / MANIFEST_NAME).write_text(made.dumps(), encoding="utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    """A bundle made by hand; its models are a few bytes."""
    root = tmp_path / "hand.bundle"
    files = []
    for path, (role, data) in CONTENT.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        files.append(File(path, role, len(data), sha256_file(place)))
    write(root, manifest(tuple(files)))
    return root


def refuse(root: Path, *says: str) -> None:
    """Opening is refused."""
    with pytest.raises(DamagedError) as caught:
        Bundle.open(root)
    for words in says:
        assert words in str(caught.value)


def refuse_files(root: Path, *says: str) -> None:
    """Opening succeeds, hashing every file does not."""
    bundle = Bundle.open(root)
    with pytest.raises(DamagedError) as caught:
        bundle.check_files()
    for words in says:
        assert words in str(caught.value)


def test_a_whole_bundle_opens(root):
    bundle = Bundle.open(str(root))
    seen = []
    bundle.check_files(progress=lambda file: seen.append(file.path))
    assert seen == list(CONTENT)
    assert bundle.artifact("coreml").precision == "fp16"
    with pytest.raises(RequestError, match=r"no tflite artifact.*onnx, coreml"):
        bundle.artifact("tflite")


def test_a_bundle_opens_from_anywhere(root, monkeypatch):
    monkeypatch.chdir(root)
    Bundle.open(".").check_files()
    monkeypatch.chdir(root / "onnx")
    Bundle.open("..").check_files()


def test_a_bundle_opens_through_a_link_to_it(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    Bundle.open(tmp_path / "link").check_files()


def test_what_is_no_bundle(root, tmp_path):
    for path, says in ((tmp_path / "nothing", "No such bundle"), (root / "README.md", "No such bundle")):
        with pytest.raises(RequestError, match=says):
            Bundle.open(path)
    with pytest.raises(RequestError, match=r"no manifest\.json"):
        Bundle.open(root / "onnx")
    (root / "onnx" / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="palmtop export"):
        Bundle.open(root / "onnx")


@pytest.mark.parametrize("path", CONTENT)
def test_a_missing_file_is_named(root, path):
    (root / path).unlink()
    refuse(root, path, "missing")


@pytest.mark.parametrize("path", CONTENT)
def test_a_cut_file_is_named(root, path):
    (root / path).write_bytes((root / path).read_bytes()[:-1])
    refuse(root, path, "bytes", "Export the bundle again")


@pytest.mark.parametrize("path", SMALL)
def test_an_altered_file_is_named(root, path):
    data = (root / path).read_bytes()
    (root / path).write_bytes(b"?" + data[1:])
    refuse(root, path, "altered")


@pytest.mark.parametrize("path", LARGE)
def test_an_altered_model_is_named_when_all_files_are_checked(root, path):
    data = (root / path).read_bytes()
    (root / path).write_bytes(b"?" + data[1:])
    refuse_files(root, path, "altered")


@pytest.mark.parametrize("path", ["extra.txt", "onnx/model.onnx.data", "coreml/model.mlpackage/Data/x", ".hidden"])
def test_an_added_file_is_named(root, path):
    (root / path).write_bytes(b"")
    refuse_files(root, path, "not in the manifest")


@pytest.mark.parametrize("path", ["golden.jsonl", "onnx/model.onnx"])
def test_a_folder_in_the_place_of_a_file_is_a_missing_file(root, path):
    (root / path).unlink()
    (root / path).mkdir()
    refuse(root, path, "missing")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(root):
    (root / "golden.jsonl").unlink()
    os.mkfifo(root / "golden.jsonl")
    refuse(root, "golden.jsonl", "missing")


# --- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["golden.jsonl", "onnx/model.onnx"])
def test_a_link_out_of_the_bundle_is_refused(root, tmp_path, path):
    (tmp_path / "outside").write_bytes((root / path).read_bytes())
    (root / path).unlink()
    (root / path).symlink_to(tmp_path / "outside")
    refuse(root, path, "leads out")


def test_a_linked_folder_out_of_the_bundle_is_refused(root, tmp_path):
    shutil.move(root / "onnx", tmp_path / "onnx")
    (root / "onnx").symlink_to(tmp_path / "onnx")
    refuse(root, "onnx/model.onnx", "leads out")


@pytest.mark.parametrize("to", ["README.md", "onnx", "/etc", "nothing"])
def test_any_link_is_refused_when_all_files_are_checked(root, to):
    (root / "link").symlink_to(to)
    refuse_files(root, "link", "symbolic link")


def test_a_link_inside_the_bundle_is_refused_when_all_files_are_checked(root):
    (root / "README.md").rename(root / "card")
    (root / "README.md").symlink_to("card")
    refuse_files(root, "symbolic link")


def test_the_path_check_does_not_rest_on_the_schema_alone(root, tmp_path):
    (tmp_path / "outside").write_bytes(b"x")
    bundle = Bundle.open(root)
    escape = File("../outside", "card", 1, sha256_file(tmp_path / "outside"))
    with pytest.raises(DamagedError, match="leads out"):
        Bundle(root, dataclasses.replace(bundle.manifest, files=(escape,))).check_files()


# --- the manifest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("artifact", ["onnx/model.onnx", "coreml/model.mlpackage"])
def test_an_artifact_that_no_hash_covers_is_refused(root, artifact):
    files = tuple(file for file in Bundle.open(root).manifest.files if not file.path.startswith(artifact))
    write(root, manifest(files))
    refuse(root, artifact, "does not list")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null"])
def test_a_garbage_manifest_is_damage(root, text):
    (root / MANIFEST_NAME).write_text(text)
    refuse(root, MANIFEST_NAME)


def test_an_altered_manifest_is_damage(root):
    path = root / MANIFEST_NAME
    path.write_text(path.read_text().replace('"task": "module"', '"task": "fill-mask"'))
    refuse(root, "altered")


# --- choosing a target ----------------------------------------------------------------------------------------------


@pytest.fixture
def engines(monkeypatch):
    """Backends that are missing as told: target -> why, or None."""
    missing: dict[str, str | None] = {"onnx": None, "coreml": None, "executorch": None}

    def get_backend(target):
        return backends.Backend(target, lambda *_: None, lambda: missing[target], lambda path: None)

    monkeypatch.setattr("palmtop.runtime.bundle.get_backend", get_backend)
    return missing


def test_the_first_target_that_runs_here_is_preferred(root, engines):
    bundle = Bundle.open(root)
    assert bundle._preferred_target() == "onnx"
    engines["onnx"] = "no ONNX Runtime"
    assert bundle._preferred_target() == "coreml"


def test_when_nothing_runs_here_every_reason_is_given(root, engines):
    engines.update(onnx="Install ONNX Runtime.", coreml="Use a Mac.")
    with pytest.raises(RequestError) as caught:
        Bundle.open(root).open_session()
    assert "onnx: Install ONNX Runtime." in str(caught.value)
    assert "coreml: Use a Mac." in str(caught.value)
    assert "executorch" not in str(caught.value)
