"""Models that outgrow memory: weights stay in their files, are never copied whole, and are written one by one."""

from __future__ import annotations

import contextlib
import copy
import mmap
import shutil
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from palmtop.export import export_module, mapped, memory, reference, source, widened
from palmtop.export.module_subject import module_subject
from palmtop.export.source import open_source
from palmtop.export.targets import onnx as onnx_target
from palmtop.export.targets import onnx_aside
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import DamagedError, RequestError
from safetensors.torch import load_file, save_file


class Layers(torch.nn.Module):
    """An embedding that is also the head, with layers in between."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(90, 24)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(24, 24) for _ in range(3))
        self.norm = torch.nn.LayerNorm(24)
        self.head = torch.nn.Linear(24, 90, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("shift", torch.linspace(-1, 1, 24))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.shift
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(self.norm(x))


def example() -> dict[str, torch.Tensor]:
    return {"ids": torch.arange(12).reshape(2, 6) * 7 % 90}


def layers() -> Layers:
    torch.manual_seed(0)
    return Layers().eval()


def lowered(target: str, place: Path, precision: str = "none", **options) -> Path:
    """The folder of the bundle that `Layers` becomes."""
    axes = {"ids": {0: "batch", 1: "sequence"}}
    export_module(
        layers(), example(), place, dynamic_axes=axes, to=[target], quantize=precision, fallback=False, **options
    )
    return place


# --- the reference ------------------------------------------------------------------------------------------------


def noise_of(model: torch.nn.Module) -> dict:
    subject = module_subject(model, example(), name="layers", dynamic_axes=None, output_names=None, verify_inputs=None)
    return subject.reference.noise(subject.cases())


def test_the_noise_floor_of_a_large_model_is_that_of_a_copy_in_fp64(monkeypatch):
    copied = noise_of(layers())
    monkeypatch.setattr(reference, "_MOST_FOR_COPY", 0)
    assert noise_of(layers()) == copied


def test_the_noise_floor_of_a_very_large_model_is_of_the_same_size(monkeypatch):
    copied = noise_of(layers())
    monkeypatch.setattr(reference, "_MOST_FOR_FP64", 0)
    for name, rough in noise_of(layers()).items():
        assert copied[name].rms_error / 10 < rough.rms_error < copied[name].rms_error * 10


@pytest.mark.parametrize("largest", ["_MOST_FOR_COPY", "_MOST_FOR_FP64"])
def test_no_weight_is_copied_or_changed_for_the_noise_floor(monkeypatch, largest):
    monkeypatch.setattr(reference, largest, 0)
    model = layers()
    before = copy.deepcopy(model.state_dict())
    subject = module_subject(model, example(), name="layers", dynamic_axes=None, output_names=None, verify_inputs=None)
    other = subject.reference.other_model(subject.cases()[0].feeds)
    subject.reference.run(subject.cases()[0].feeds, other)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- mapped files -------------------------------------------------------------------------------------------------


def resident(path: Path) -> int:
    return sum(found[3] for found in mapped._mappings() if found[2] == str(path))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are in memory")
def test_pages_of_weight_files_are_given_back_and_come_back(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(500_000, dtype=torch.float32)}, path)
    weight = load_file(path)["weight"]
    total = float(weight.sum())
    held = resident(path)
    assert held > 1_900_000
    assert mapped.release() >= held
    assert resident(path) < 100_000
    assert float(weight.sum()) == total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are in memory")
def test_pages_that_were_written_to_are_kept(tmp_path):
    path = tmp_path / "changed.safetensors"
    path.write_bytes(bytes(1_000_000))
    with path.open("rb") as file:
        memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    memory[500_000] = 7
    mapped.release()
    assert memory[500_000] == 7


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells how much memory is in use")
def test_what_was_freed_between_other_things_is_given_back():
    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    pieces = [bytearray(b"x" * 60_000) for _ in range(2000)]
    last = pieces[-1]
    del pieces
    before = held()
    mapped.trim()
    assert before - held() > 60_000_000
    assert len(last) == 60_000


# --- ONNX ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["none", "fp16"])
def test_weights_beside_an_onnx_file_are_those_within_it(tmp_path, monkeypatch, precision):
    lowered("onnx", tmp_path / "one", precision)
    monkeypatch.setattr(onnx_target, "_LARGEST_SINGLE_FILE", 1000)
    lowered("onnx", tmp_path / "two", precision)
    files = {file.path: file for file in Bundle.open(tmp_path / "two").manifest.files}
    assert files["onnx/model.onnx"].size < 20_000 < files["onnx/model.onnx.data"].size + 20_000
    one, two = (onnx_ir.load(tmp_path / name / "onnx/model.onnx").graph.initializers for name in ("one", "two"))
    assert set(one) == set(two)
    for name, value in one.items():
        assert value.const_value.dtype == two[name].const_value.dtype
        assert np.array_equal(value.const_value.numpy(), two[name].const_value.numpy())
    Bundle.open(tmp_path / "two").check_files()


def test_fp16_weights_converted_one_by_one_give_the_same_file(tmp_path, monkeypatch):
    lowered("onnx", tmp_path / "at-once", "fp16")
    monkeypatch.setattr(onnx_aside, "_LEAST_BYTES", 1)
    monkeypatch.setattr(onnx_aside, "_CHUNK", 100)
    lowered("onnx", tmp_path / "one-by-one", "fp16")
    one, other = ((tmp_path / name / "onnx/model.onnx").read_bytes() for name in ("at-once", "one-by-one"))
    assert one == other


# --- ExecuTorch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["none", "fp16"])
def test_a_pte_of_weights_that_were_not_copied_is_the_same_file(tmp_path, monkeypatch, precision):
    from palmtop.export.targets import executorch_lowering, executorch_memory

    monkeypatch.setattr(executorch_memory, "_LEAST_BYTES", 1)
    made = []

    class Watched(executorch_memory.Stored):
        def __new__(cls, tensor):
            made.append(tensor)
            return super().__new__(cls, tensor)

    released = []
    monkeypatch.setattr(executorch_memory, "Stored", Watched)
    monkeypatch.setattr(executorch_memory, "_MOST_READ", 1000)
    monkeypatch.setattr(executorch_memory, "release", lambda: released.append(mapped.release()))
    lowered("executorch", tmp_path / "mapped", precision)
    assert len(made) > 4
    assert len(released) > 4  # weights are given back while they are read
    monkeypatch.setattr(executorch_lowering, "uncopied", lambda program: contextlib.nullcontext())
    lowered("executorch", tmp_path / "copied", precision)
    one, other = ((tmp_path / name / "executorch/model.pte").read_bytes() for name in ("mapped", "copied"))
    assert one == other


# --- half-precision checkpoints -------------------------------------------------------------------------------------


def test_a_large_checkpoint_in_half_precision_is_loaded_from_a_copy_in_fp32(tmp_path, monkeypatch):
    half = {"a": torch.randn(40, 3).bfloat16(), "b": torch.randn(7).half(), "c": torch.arange(5), "d": torch.randn(2)}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(widened, "_LEAST_BYTES", 0)
    with widened.mappable(tmp_path) as folder:
        found = load_file(folder / "model.safetensors")
        assert (folder / "config.json").read_text() == "{}"
    assert not folder.exists()
    assert {name: value.dtype for name, value in found.items()} == {
        "a": torch.float32, "b": torch.float32, "c": torch.int64, "d": torch.float32
    }  # fmt: skip
    for name, value in found.items():
        assert torch.equal(value, half[name].to(value.dtype))


def test_small_checkpoints_and_those_in_fp32_are_loaded_where_they_are(tmp_path, monkeypatch):
    save_file({"a": torch.randn(40).half()}, tmp_path / "model.safetensors")
    with widened.mappable(tmp_path) as folder:
        assert folder == tmp_path
    monkeypatch.setattr(widened, "_LEAST_BYTES", 0)
    save_file({"a": torch.randn(40)}, tmp_path / "model.safetensors")
    with widened.mappable(tmp_path) as folder:
        assert folder == tmp_path


def test_a_checkpoint_loads_from_its_copy_as_it_does_from_its_files(tmp_path, checkpoint, monkeypatch):
    folder = tmp_path / "half"
    shutil.copytree(checkpoint(), folder)
    weights = load_file(folder / "model.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    usual = open_source(folder).load_model().state_dict()
    monkeypatch.setattr(widened, "_LEAST_BYTES", 0)
    model = open_source(folder).load_model()
    assert model.config.name_or_path == str(folder)
    for name, value in model.state_dict().items():
        assert value.dtype == usual[name].dtype
        assert torch.equal(value, usual[name])


# --- the prediction -------------------------------------------------------------------------------------------------

BILLION = memory.Weights(4_000_000_000, 260_000_000)


def test_weights_are_counted_as_fp32_from_the_headers_alone(tmp_path):
    save_file({"a": torch.zeros(10, 20).half(), "b": torch.zeros(3)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(50)}, tmp_path / "two.safetensors")
    found = memory.weights_of([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])
    assert found == memory.Weights(4 * 253, 4 * 200)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02" + bytes(7) + b"[]"])
def test_a_file_without_a_header_is_damaged(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedError, match="not a safetensors file"):
        memory.weights_of([tmp_path / "model.safetensors"])


@pytest.mark.parametrize("target", ["onnx", "coreml", "executorch"])
def test_a_billion_parameters_take_less_than_twice_their_bytes(target):
    assert BILLION.total < memory.predicted(BILLION, target, "fp32") < 2 * BILLION.total


def test_an_export_that_fits_is_let_through(monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "16G")
    assert memory.check_memory(BILLION, ["onnx", "coreml", "executorch"], "fp32") < 8e9


def test_an_export_that_does_not_fit_is_refused_with_what_would(monkeypatch):
    one = memory.predicted(BILLION, "onnx", "fp32")
    monkeypatch.setenv(memory.VARIABLE, str(one + 1000))
    with pytest.raises(RequestError, match=r"one target at a time \(--to onnx needs") as refused:
        memory.check_memory(BILLION, ["onnx", "coreml", "executorch"], "fp32")
    assert f"{one / 1e9:.1f} GB are free" in str(refused.value)
    monkeypatch.setenv(memory.VARIABLE, "10G")
    with pytest.raises(RequestError, match="with --quantize fp16, which needs"):
        memory.check_memory(BILLION, ["onnx"], "fp32", quantized=True)


def test_a_wrong_size_is_named(monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "plenty")
    with pytest.raises(RequestError, match="PALMTOP_MEMORY=plenty is not a size"):
        memory.available()


def test_small_exports_begin_whatever_is_free(monkeypatch):
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert memory.check_memory(memory.Weights(90_000_000, 47_000_000), ["onnx"], "fp32") > 0


def test_the_command_line_refuses_before_it_loads_anything(tmp_path, checkpoint, palmtop, monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "100M")
    monkeypatch.setattr(source.Source, "load_model", lambda self: pytest.fail("loaded"))
    result = palmtop("export", checkpoint(), "-o", tmp_path / "bundle")
    assert result.code == 2
    assert "0.1 GB are free" in result.err
    assert not (tmp_path / "bundle").exists()


def test_free_memory_is_the_least_that_the_control_groups_leave(tmp_path):
    group = tmp_path / "fs" / "jobs" / "mine"
    group.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("0::/jobs/mine\n")
    for place, limit in ((group, "max"), (group.parent, "5000")):
        (place / "memory.max").write_text(limit)
        (place / "memory.current").write_text("3000")
        (place / "memory.stat").write_text("anon 1500\ninactive_file 1000\n")
    assert memory._groups(tmp_path / "fs", own) == [3000]


def test_free_memory_is_what_the_system_would_give_back_too(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\nSwapFree: 500 kB\n")
    assert memory._machine(tmp_path / "meminfo") == 4500 * 1024
    assert memory._machine(tmp_path / "nothing") is None
