"""A bundle is complete, the same every time, and either whole or not there."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import onnx as onnx_library
import pytest
from onnx import numpy_helper
from palmtop.export import build, export_checkpoint, staging, targets
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.targets import Target, onnx
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import ParityError, RequestError
from palmtop.runtime.manifest import manifest_schema

from .conftest import CARD


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is in it --------------------------------------------------------------------------------------------------


def test_a_bundle_holds_what_the_design_says(exported):
    files = set(contents(exported.path))
    assert {"manifest.json", "onnx/model.onnx", "executorch/model.pte", "golden.jsonl", "parity.json"} <= files
    assert {"README.md", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.txt"} <= files
    assert any(name.startswith("coreml/model.mlpackage/") for name in files)


def test_the_manifest_lists_every_file_with_its_size_and_hash(exported):
    found = contents(exported.path)
    listed = {file.path: file for file in exported.manifest.files}
    assert set(found) == {*listed, "manifest.json"}
    for path, file in listed.items():
        assert (file.size, file.sha256) == (len(found[path]), hashlib.sha256(found[path]).hexdigest())


def test_the_manifest_fits_its_schema_and_says_what_was_exported(exported, checkpoint):
    data = json.loads((exported.path / "manifest.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, manifest_schema(), cls=jsonschema.Draft202012Validator)
    assert data["task"] == "text-classification"
    assert data["source"] == {
        "id": "tiny-bert",
        "revision": None,
        "weights_sha256": hashlib.sha256((checkpoint() / "model.safetensors").read_bytes()).hexdigest(),
        "architecture": "BertForSequenceClassification",
        "model_type": "bert",
        "license": "apache-2.0",
    }
    assert [artifact["target"] for artifact in data["artifacts"]] == ["onnx", "coreml", "executorch"]
    assert data["postprocess"]["id2label"] == {"0": "set_alarm", "1": "play_music", "2": "weather"}
    assert data["parity"]["reference"] == "eager PyTorch, fp32, unpatched"
    assert {entry["status"] for entry in data["parity"]["artifacts"].values()} == {"passed"}


def test_every_artifact_carries_the_identity(exported):
    bundle = Bundle.open(exported.path)
    bundle.check_files()
    for artifact in bundle.manifest.artifacts:
        assert bundle.open_session(artifact.target).runner.identity == bundle.manifest.identity


def test_the_card_carries_what_the_checkpoints_card_says(exported):
    card = (exported.path / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^license: apache-2.0$", card, re.MULTILINE)
    assert "The checkpoint states: apache-2.0." in card
    for carried in ("Training data", "Where they came from", "Bias, risks and limitations"):
        assert re.search(rf"^#+ {carried}$", card, re.MULTILINE)
    assert "It favours short sentences." in card
    assert "pipeline(...)" in CARD
    assert "pipeline(...)" not in card
    for artifact in exported.manifest.artifacts:
        assert artifact.path in card


def test_golden_vectors_cover_languages_pairs_truncation_and_padding(exported):
    golden = {case.name: case for case in Bundle.open(exported.path).golden()}
    longest = exported.manifest.tokenizer.max_length
    assert len(golden["truncated"].encoding["input_ids"]) == longest
    assert 0 in golden["padded to 32"].encoding["attention_mask"]
    assert 1 in golden["pair 1"].encoding["token_type_ids"]
    texts = "".join(case.text for case in golden.values())
    for probe in "é일天😍\u0000ر\u200b":
        assert probe in texts
    for case in golden.values():
        assert len(case.offsets) == len(case.encoding["input_ids"])
        assert case.outputs["logits"].shape == (3,)


# --- the same every time --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def again(checkpoint, tmp_path_factory):
    """The same export by another process: another hash seed, working directory, home, user and umask."""
    place = tmp_path_factory.mktemp("again")
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "HOME": str(place), "USER": "somebody", "TZ": "Asia/Seoul"}
    subprocess.run(
        [sys.executable, "-m", "palmtop.export", "export", str(checkpoint()), "-o", "deep/er/other.bundle"],
        cwd=place,
        env=environment,
        umask=0o077,
        check=True,
        capture_output=True,
    )
    return place / "deep" / "er" / "other.bundle"


def test_two_exports_are_byte_identical(exported, again):
    first, second = contents(exported.path), contents(again)
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_nothing_of_this_machine_is_in_a_bundle(exported, again, checkpoint):
    places = {
        checkpoint(),
        exported.path,
        again,
        Path.home(),
        Path(tempfile.gettempdir()),
        Path.cwd(),
        Path(sys.prefix),
    }
    for name, data in contents(exported.path).items():
        for place in places - {Path("/")}:
            for encoding in ("utf-8", "utf-16-le"):
                assert str(place).encode(encoding) not in data, name
        if name != "golden.jsonl" and not name.endswith((".bin", ".pte", ".onnx", ".mlmodel")):
            assert not re.search(r"20\d\d-\d\d-\d\d[T ]\d\d", data.decode("utf-8")), name


# --- the destination ------------------------------------------------------------------------------------------------


def export(checkpoint, destination: Path, **options):
    return export_checkpoint(checkpoint(), destination, to=["onnx"], **options)


def nothing_beside(destination: Path) -> bool:
    return not destination.exists() and list(destination.parent.iterdir()) == []


@pytest.fixture(scope="module")
def captured(checkpoint):
    """The tiny classifier, captured once."""
    return build.capture_subject(checkpoint_subject(open_source(checkpoint()), None, None))


@pytest.fixture
def quick(monkeypatch, exported, known_capture):
    """A target `onnx` that takes the artifact of the exported bundle, and so no time."""

    def lower(captured, artifact, identity, path: Path) -> None:
        onnx_file = exported.path / "onnx" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(onnx_file.read_bytes().replace(exported.manifest.identity.encode(), identity.encode()))

    replace_target(monkeypatch, lowered_by(lower))
    return lower


def lowered_by(lower) -> Target:
    """The ONNX target with another way to write the artifact, and no search for what it cannot take."""
    return dataclasses.replace(onnx.TARGET, lower=lower, unsupported=lambda captured, artifact: ())


@pytest.fixture
def known_capture(monkeypatch, captured):
    """Exports of the tiny classifier take what was captured already."""
    monkeypatch.setattr(build, "capture_subject", lambda subject: captured)


def replace_target(monkeypatch, target: Target) -> None:
    monkeypatch.setattr(build, "get_target", lambda name: target)


def test_an_existing_destination_is_refused_before_any_work(checkpoint, bundle):
    before = contents(bundle)
    with pytest.raises(RequestError, match="--force"):
        export_checkpoint("./no-such-checkpoint", bundle)
    assert contents(bundle) == before


def test_force_replaces_a_bundle_whole(checkpoint, bundle, quick):
    (bundle / "stale.txt").write_text("left from before")
    result = export(checkpoint, bundle, force=True)
    assert set(contents(bundle)) == {*(file.path for file in result.manifest.files), "manifest.json"}
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("make", ["folder", "file"])
def test_force_replaces_nothing_but_a_bundle(checkpoint, tmp_path, make):
    destination = tmp_path / "thesis"
    if make == "folder":
        destination.mkdir()
        (destination / "chapter1.tex").write_text("Years of work")
    else:
        destination.write_text("Years of work")
    with pytest.raises(RequestError, match="not a palmtop bundle"):
        export(checkpoint, destination, force=True)
    assert "Years of work" in (destination / "chapter1.tex" if make == "folder" else destination).read_text()


def test_an_empty_folder_is_filled(checkpoint, tmp_path, quick):
    destination = tmp_path / "empty"
    destination.mkdir()
    export(checkpoint, destination)
    Bundle.open(destination).check_files()


def test_a_link_to_a_bundle_is_refused(checkpoint, bundle, tmp_path):
    link = tmp_path / "link.bundle"
    link.symlink_to(bundle)
    before = contents(bundle)
    with pytest.raises(RequestError, match="symbolic link"):
        export(checkpoint, link, force=True)
    assert contents(bundle) == before


def test_a_parent_that_cannot_be_written_is_a_wrong_request(checkpoint, tmp_path, quick):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="Cannot write"):
        export(checkpoint, tmp_path / "file" / "x.bundle")


# --- exports that die -----------------------------------------------------------------------------------------------


def dying(error: BaseException) -> Target:
    """The ONNX target, dying with an error when half of the artifact is written."""

    def lower(captured, artifact, identity, path: Path) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        raise error

    return lowered_by(lower)


@pytest.mark.parametrize("error", [ValueError("inside a converter"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_an_export_that_dies_leaves_nothing(checkpoint, tmp_path, monkeypatch, known_capture, error):
    replace_target(monkeypatch, dying(error))
    with pytest.raises(type(error)):
        export(checkpoint, tmp_path / "x.bundle")
    assert nothing_beside(tmp_path / "x.bundle")


def test_a_full_disk_leaves_nothing_and_says_so(checkpoint, tmp_path, monkeypatch, known_capture):
    replace_target(monkeypatch, dying(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RequestError) as caught:
        export(checkpoint, tmp_path / "x.bundle")
    assert "No space left on device" in str(caught.value)
    assert "x.bundle" in str(caught.value)
    assert nothing_beside(tmp_path / "x.bundle")


def test_a_full_disk_in_the_words_of_a_converter(checkpoint, tmp_path, monkeypatch, known_capture):
    replace_target(monkeypatch, dying(RuntimeError("[MIL FileWriter]: Unknown error")))
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda place: SimpleNamespace(free=4096))
    with pytest.raises(RequestError, match=r"the disk of .* is full"):
        export(checkpoint, tmp_path / "x.bundle")
    assert nothing_beside(tmp_path / "x.bundle")


@pytest.mark.parametrize("place", ["write_golden", "write_card", "list_files"])
def test_a_disk_that_fills_up_later_leaves_nothing_either(checkpoint, tmp_path, monkeypatch, quick, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, place, full)
    with pytest.raises(RequestError, match="No space left"):
        export(checkpoint, tmp_path / "x.bundle")
    assert nothing_beside(tmp_path / "x.bundle")


def test_a_file_that_cannot_be_read_is_not_said_to_be_one_that_cannot_be_written(checkpoint, tmp_path, monkeypatch):
    replace_target(monkeypatch, dying(FileNotFoundError(2, "No such file", "/elsewhere/table")))
    with pytest.raises(FileNotFoundError):
        export(checkpoint, tmp_path / "x.bundle")


def test_a_failed_export_leaves_no_folders_on_the_way_to_its_bundle(checkpoint, tmp_path, monkeypatch, known_capture):
    replace_target(monkeypatch, dying(ValueError("inside a converter")))
    with pytest.raises(ValueError, match="inside a converter"):
        export(checkpoint, tmp_path / "one" / "two" / "x.bundle")
    assert not (tmp_path / "one").exists()


def test_a_replacement_that_dies_leaves_the_old_bundle(checkpoint, bundle, monkeypatch, known_capture):
    before = contents(bundle)
    replace_target(monkeypatch, dying(ValueError("inside a converter")))
    with pytest.raises(ValueError, match="inside a converter"):
        export(checkpoint, bundle, force=True)
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_replacement_that_dies_between_its_two_renames_restores_the_old_bundle(
    checkpoint, bundle, monkeypatch, quick
):
    before = contents(bundle)
    rename = Path.rename

    def interrupted(self: Path, target: Path):
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, bundle, force=True)
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_what_a_killed_export_left_is_removed_by_the_next(checkpoint, tmp_path, quick):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    abandoned = tmp_path / f".x.bundle.{process.pid}.partial"
    running = tmp_path / f".x.bundle.{os.getppid()}.partial"
    abandoned.mkdir()
    running.mkdir()
    export(checkpoint, tmp_path / "x.bundle")
    assert not abandoned.exists()
    assert running.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_in_the_middle_of_lowering_leaves_nothing(checkpoint, tmp_path, number):
    place = tmp_path / "place"
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "palmtop.export", "export", str(checkpoint()), "--to", "onnx", "-o", "x.bundle"],
        cwd=place,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # What a shell starts in the background inherits that Ctrl-C is ignored, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(place.glob(".x.bundle.*.partial")):
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert list(place.iterdir()) == []
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert out == ""


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def wrong(monkeypatch, exported, known_capture):
    """A target whose artifact has one damaged weight."""

    def lower(captured, artifact, identity, path: Path) -> None:
        model = onnx_library.load(exported.path / "onnx" / "model.onnx")
        for entry in model.metadata_props:
            entry.value = identity
        tensor = next(t for t in model.graph.initializer if t.dims and len(t.dims) == 2)
        array = numpy_helper.to_array(tensor) * 1.5
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        path.parent.mkdir(parents=True)
        onnx_library.save(model, path)

    replace_target(monkeypatch, lowered_by(lower))


def test_an_artifact_that_is_not_the_model_leaves_nothing(checkpoint, tmp_path, wrong):
    with pytest.raises(ParityError) as caught:
        export(checkpoint, tmp_path / "x.bundle")
    assert caught.value.exit_code == 1
    message = str(caught.value)
    for says in ("no bundle was written", "onnx/model.onnx", "logits", "max error", "allowed", "Remedy"):
        assert says in message
    assert nothing_beside(tmp_path / "x.bundle")


def test_a_failed_parity_is_exit_code_1(palmtop, checkpoint, tmp_path, wrong):
    done = palmtop("export", checkpoint(), "-o", tmp_path / "x.bundle", "--to", "onnx", "--json")
    assert done.code == 1
    assert done.json["error"]["kind"] == "ParityError"
    assert nothing_beside(tmp_path / "x.bundle")


def test_progress_names_the_stages_in_order(checkpoint, tmp_path, quick):
    stages = []
    export(checkpoint, tmp_path / "x.bundle", progress=lambda what, steps: stages.append(what) or (lambda: None))
    assert stages == ["Running the reference", "Capturing the model", "Lowering to onnx", "Verifying onnx/model.onnx"]


def test_targets_are_the_registry_and_nothing_else():
    assert list(targets.TARGETS) == ["onnx", "coreml", "executorch"]
    for name in targets.TARGETS:
        assert targets.get_target(name).name == name
    with pytest.raises(RequestError, match="Known targets: onnx, coreml, executorch"):
        targets.get_target("tflite")
