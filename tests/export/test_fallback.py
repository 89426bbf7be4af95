"""fp16 that fails parity: as few modules as will do stay in fp32, and every report says which and why."""

from __future__ import annotations

import json

import pytest
import torch
from palmtop.export import build, export_module, work
from palmtop.export.fallback import fewest_kept
from palmtop.export.stamp import restamp
from palmtop.export.suspects import Suspect
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import ParityError
from palmtop.runtime.parity import Bound, Measure
from palmtop.runtime.reports import ArtifactReport
from palmtop.runtime.verify import verify_bundle

from .overflowing import LostDigits, LoudChannel, LoudMiddle, LoudScores

NAMES = [f"layer.{index}" for index in range(16)]


def report(passed: bool) -> ArtifactReport:
    measure = Measure("y", 1, 1, 0.0 if passed else 1.0, 0.0 if passed else 1.0, 1.0, 0, "case", bound=Bound(0.1, 0.1))
    return ArtifactReport("made up", "up", "fp16", "passed" if passed else "failed", measures=[measure])


def search(needed, *, peaks=None, floor=(), most=24, helps=True):
    """The search against a gate that passes once all `needed` modules are kept; and what it tried."""
    tried = []

    def trial(modules):
        tried.append(modules)
        return report(helps and set(needed) <= set(modules))

    ranking = [Suspect(name, (peaks or {}).get(name, 0.0)) for name in NAMES]
    return fewest_kept(report(False), trial, lambda failed: ranking, floor, most), tried


@pytest.mark.parametrize("needed", [["layer.3"], ["layer.2", "layer.11"], ["layer.0", "layer.7", "layer.15"]])
def test_the_search_finds_exactly_what_is_needed(needed):
    kept, tried = search(needed)
    assert list(kept.modules) == needed
    assert set(kept.reasons) == set(needed)
    assert kept.minimal
    assert len(tried) == len(set(tried)) <= 24


def test_modules_known_to_overflow_are_tried_first():
    kept, tried = search(["layer.9"], peaks={"layer.9": 1e6})
    assert kept.modules == ("layer.9",)
    assert tried == [("layer.9",)]
    assert kept.reasons["layer.9"] == "values up to 1e+06, and fp16 ends at 65504"


def test_what_the_user_keeps_is_the_floor_and_is_not_explained():
    kept, tried = search(["layer.1", "layer.5"], floor=("layer.5",))
    assert kept.modules == ("layer.5", "layer.1")
    assert set(kept.reasons) == {"layer.1"}
    assert all(modules[0] == "layer.5" for modules in tried)


def test_a_search_that_ends_early_says_so_and_what_it_gives_passes():
    kept, tried = search(NAMES[::2], most=9)
    assert not kept.minimal
    assert set(NAMES[::2]) <= set(kept.modules)
    assert kept.report.status == "passed"
    assert len(tried) <= 9


def test_what_no_module_helps_is_given_up():
    kept, tried = search([], helps=False)
    assert kept.modules is None
    assert tried[-1] == tuple(NAMES)


CASES = {
    # In each target: what has to be kept. A value beyond fp16 is kept where it is made and where it is read.
    ("coreml", LoudChannel): ["norm"],
    ("coreml", LoudScores): ["loud"],
    ("coreml", LoudMiddle): ["up", "down"],
    ("executorch", LoudScores): ["loud"],
    ("executorch", LoudMiddle): ["up", "down"],
    ("onnx", LoudScores): ["loud"],
    ("coreml", LostDigits): ["offset"],
    ("executorch", LostDigits): ["offset"],
}


@pytest.mark.parametrize(("target", "network"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_modules_that_fp16_breaks_are_kept_in_fp32_and_no_others(target, network, tmp_path):
    torch.manual_seed(0)
    example = {"x": torch.randn(1, 5, 16)}
    result = export_module(network(), example, tmp_path / "net.bundle", to=[target], quantize="fp16")
    quantization = result.manifest.artifacts[0].quantization
    assert sorted(quantization["keep_fp32"]) == sorted(CASES[target, network])
    assert list(quantization["kept_because"]) == CASES[target, network]
    said = "without it, output: max error" if network is LostDigits else "fp16 ends at 65504"
    assert said in " ".join(quantization["kept_because"].values())
    assert result.report.passed
    assert any(note.startswith(f"{target}: fp16 alone fails parity") for note in result.notes)
    bundle = Bundle.open(result.path)
    bundle.check_files()
    assert verify_bundle(bundle).passed
    card = (result.path / "README.md").read_text(encoding="utf-8")
    assert all(f"- {target}: `{name}`:" in card for name in CASES[target, network])


def test_llama_norms_that_overflow_pass_in_executorch_without_help(tmp_path):
    """Squares and their means are computed in fp32 there whatever surrounds them."""
    torch.manual_seed(0)
    result = export_module(
        LoudChannel(), {"x": torch.randn(1, 5, 16)}, tmp_path / "net.bundle", to=["executorch"], quantize="fp16"
    )
    assert result.manifest.artifacts[0].quantization is None


def test_only_the_target_that_fails_is_lowered_again_and_all_carry_the_final_identity(tmp_path, monkeypatch):
    torch.manual_seed(0)
    lowered = []

    def counted(name):
        target = build_target(name)

        def lower(captured, artifact, identity, path):
            lowered.append(name)
            target.lower(captured, artifact, identity, path)

        return build.dataclasses.replace(target, lower=lower)

    build_target = build.get_target
    monkeypatch.setattr(build, "get_target", counted)
    result = export_module(
        LoudChannel(),
        {"x": torch.randn(1, 5, 16)},
        tmp_path / "net.bundle",
        to=["onnx", "coreml", "executorch"],
        quantize="fp16",
    )
    assert lowered.count("onnx") == lowered.count("executorch") == 1
    assert lowered.count("coreml") == 2
    assert verify_bundle(Bundle.open(result.path)).passed
    assert not [path for path in result.path.iterdir() if path.name.startswith(".")]


def test_without_fallback_the_export_fails_and_names_operation_module_and_remedy(tmp_path):
    torch.manual_seed(0)
    with pytest.raises(ParityError) as raised:
        export_module(
            LoudChannel(),
            {"x": torch.randn(1, 5, 16)},
            tmp_path / "net.bundle",
            to=["coreml"],
            quantize="fp16",
            fallback=False,
        )
    assert "(pow), in norm: it reaches 3.6e+05, and fp16 ends at 65504" in str(raised.value)
    assert "--keep-fp32 norm" in str(raised.value)
    assert not (tmp_path / "net.bundle").exists()


def test_what_the_fallback_cannot_mend_is_refused_with_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(work.Work, "verify", lambda *arguments, **more: report(False))
    with pytest.raises(ParityError) as raised:
        export_module(
            LoudMiddle(), {"x": torch.randn(1, 5, 16)}, tmp_path / "net.bundle", to=["coreml"], quantize="fp16"
        )
    assert raised.value.exit_code == 1
    assert "coreml: keeping modules in fp32 does not help; with all of them kept, y: max error 1" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_verify_names_the_operation_that_overflows_without_torch(palmtop, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(build, "_refuse_failures", lambda *arguments: None)
    export_module(
        LoudChannel(),
        {"x": torch.randn(1, 5, 16)},
        tmp_path / "net.bundle",
        to=["coreml"],
        quantize="fp16",
        fallback=False,
    )
    ran = palmtop("verify", tmp_path / "net.bundle")
    assert ran.code == 1
    assert "the first operation that overflows is" in ran.err
    assert "in norm" in ran.err
    assert "--keep-fp32 norm" in ran.err
    (entry,) = palmtop("verify", tmp_path / "net.bundle", "--json").json["artifacts"]
    assert entry["cause"]["type"] == "pow"
    assert entry["cause"]["module"] == "norm"
    assert entry["cause"]["overflowing"] == {"norm": pytest.approx(3.6e5, rel=0.02)}


@pytest.fixture(scope="module")
def loud_checkpoint(checkpoint, tmp_path_factory):
    """A tiny BERT whose second feed-forward layer is 1e6 times too large inside."""
    from safetensors.torch import load_file, save_file

    source = checkpoint()
    folder = tmp_path_factory.mktemp("loud") / "checkpoint"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.1.intermediate.dense.weight"] *= 5e4
    weights["bert.encoder.layer.1.output.dense.weight"] *= 1e-4
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_is_exported_with_the_fallback_and_refused_without(palmtop, loud_checkpoint, tmp_path):
    bundle = tmp_path / "loud.bundle"
    ran = palmtop("export", loud_checkpoint, "-o", bundle, "--to", "coreml", "--quantize", "fp16", "--json")
    assert ran.code == 0
    kept = ran.json["quantization"]["coreml"]["keep_fp32"]
    assert kept
    assert all(name.startswith("bert.encoder.layer.1.") for name in kept)
    assert json.loads((bundle / "manifest.json").read_text())["artifacts"][0]["quantization"]["keep_fp32"] == kept
    assert any("stayed in fp32" in note for note in ran.json["notes"])
    ran = palmtop(
        "export", loud_checkpoint, "-o", tmp_path / "x", "--to", "coreml", "--quantize", "fp16", "--no-fallback"
    )
    assert ran.code == 1
    assert "in bert.encoder.layer.1." in ran.err
    assert "--keep-fp32 bert.encoder.layer.1." in ran.err


def test_an_identity_is_replaced_wherever_it_stands(tmp_path):
    old, new = "ab" * 32, "cd" * 32
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "one").write_bytes(b"x" + old.encode() + b"y" + old.encode())
    (tmp_path / "model" / "two").write_bytes(b"")
    assert restamp(tmp_path / "model", old, new) == 2
    assert (tmp_path / "model" / "one").read_bytes() == b"x" + new.encode() + b"y" + new.encode()
