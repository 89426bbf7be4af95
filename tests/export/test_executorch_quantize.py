"""A plan's integers in a `.pte`: stored as they are, multiplied as integers where XNNPACK can, and the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export.capture import Captured
from palmtop.export.modules import user_path
from palmtop.export.quantization import preset_plan, quantized
from palmtop.export.targets import Options, executorch_shared
from palmtop.export.targets.executorch import plan
from palmtop.quantize import sites as quantize_sites
from palmtop.quantize.execute import run as run_fp32
from palmtop.quantize.scheme import PRESETS, Plan, Scheme
from palmtop.quantize.sites import find_sites
from palmtop.runtime.backends.executorch_file import describe
from palmtop.runtime.errors import RequestError
from palmtop.runtime.generation.decoder import Decoder
from palmtop.runtime.manifest import Artifact
from palmtop.runtime.session import Session
from torch import nn

from ..support.tiny import tiny_checkpoint
from .executorch_models import BATCH, IDENTITY, capture_checkpoint, captured, lowered, run, sequence, size
from .integers import with_integers
from .test_generation_capture import at_once, captured_of, distance, tokens

# What fp32 sums in another order differ by, and what 8-bit inputs of one or two layers do.
_NOISE = 3e-6
_ROUNDING = 0.02

_ROUNDED8 = Scheme(8, activations="dynamic")
_ROUNDED4 = Scheme(4, "block", 32, activations="dynamic")


class Dense(nn.Module):
    """64 -> 96, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(64, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x)


class Transposed(nn.Module):
    """Two layers whose weights lie as (inputs, outputs), as GPT-2's do: with a bias, and without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(64, 96) / 8), nn.Parameter(torch.randn(96))
        self.second = nn.Parameter(torch.randn(96, 64) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.addmm(self.bias, x.view(-1, 64), self.first).view(1, -1, 96)
        return torch.tanh(inner) @ self.second


class Tied(nn.Module):
    """A language model's two ends: a table of 100 x 64 that is read by row and, at the end, multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(100, 64), nn.Linear(64, 64), nn.Linear(64, 100)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(self.table(x.long()))))


class Table(nn.Module):
    """A table of 100 entries."""

    def __init__(self, columns: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(100, columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x.long()) * 2


def _program(module: nn.Module, words: bool = False) -> Captured:
    if words:
        return captured(module, (size(1), sequence(40)), torch.arange(7.0).unsqueeze(0))
    return captured(module, (size(1), sequence(40), size(64)), torch.randn(1, 7, 64))


def _planned(program: Captured, scheme: Scheme | dict[str, Scheme]) -> Captured:
    names = [user_path(site.name) for site in find_sites(program.program)]
    schemes = scheme if isinstance(scheme, dict) else dict.fromkeys(names, scheme)
    return quantized(program, Plan(schemes, rounding="nearest"), {})


def _lowered(program: Captured, folder: Path) -> tuple[Artifact, bytes, dict]:
    artifact, path = lowered(program, folder, precision="mixed")
    return artifact, path.read_bytes(), describe(path)["methods"]["forward"]


def _expected(program: Captured, x: torch.Tensor) -> torch.Tensor:
    """What the plan's fp32 program gives: the values that the integers stand for, nothing rounded as it runs."""
    return torch.as_tensor(run_fp32(program.program, {"x": x.numpy()})[0])


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def _bytes(integers: torch.Tensor, bits: int, first: str = "low") -> bytes:
    """Integers as a file holds them: one a byte, or two, shifted to 0..15, the first of them in the `first` half."""
    numbers = integers.numpy()
    if bits == 8:
        return numbers.tobytes()
    numbers = (numbers + 8).astype(np.uint8)
    low, high = (numbers[:, 0::2], numbers[:, 1::2]) if first == "low" else (numbers[:, 1::2], numbers[:, 0::2])
    return (low | high << 4).tobytes()


def _only(program: Captured):
    (weight,) = program.quantized.values()
    return weight


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme",
    [
        _ROUNDED8,
        Scheme(8, "tensor", activations="dynamic"),
        Scheme(4, activations="dynamic"),
        _ROUNDED4,
        Scheme(4, "block", 64, activations="dynamic"),
    ],
    ids=str,
)
def test_layers_multiply_integers_with_rounded_inputs(tmp_path, scheme):
    program = _planned(_program(Dense()), scheme)
    artifact, written, method = _lowered(program, tmp_path)
    assert _bytes(_only(program).integers, scheme.bits) in written
    assert [entry["operations"] for entry in method["delegates"]] == [{"Convert": 1, "FullyConnected": 1}]
    assert not method["kernels"]
    x = torch.randn(1, 11, 64)
    assert 0 < _error(run(artifact, tmp_path, x), _expected(program, x)) < _ROUNDING


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(8, "tensor"), Scheme(4)], ids=str)
def test_layers_multiply_integers_with_fp32_inputs(tmp_path, scheme):
    program = _planned(_program(Dense()), scheme)
    artifact, written, method = _lowered(program, tmp_path)
    assert _bytes(_only(program).integers, scheme.bits) in written
    assert [entry["operations"] for entry in method["delegates"]] == [{"Add": 1, "FullyConnected": 1}]
    x = torch.randn(1, 11, 64)
    assert _error(run(artifact, tmp_path, x), _expected(program, x)) < _NOISE


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(8, "block", 32),
        Scheme(8, symmetric=False),
        Scheme(8, symmetric=False, activations="dynamic"),
        Scheme(4, "block", 32),
        Scheme(4, "block", 16, activations="dynamic"),
        Scheme(4, "block", 32, symmetric=False, activations="dynamic"),
    ],
    ids=str,
)
def test_layers_that_xnnpack_lacks_keep_their_integers_and_are_exact(tmp_path, scheme):
    program = _planned(_program(Dense()), scheme)
    artifact, written, method = _lowered(program, tmp_path)
    assert _bytes(_only(program).integers, scheme.bits, "high") in written
    assert "FullyConnected" in method["delegates"][0]["operations"]
    assert len(written) < 6144 * (scheme.bits + 16) / 8  # 64 x 96 weights: no fp32 copy of them
    x = torch.randn(1, 11, 64)
    assert _error(run(artifact, tmp_path, x), _expected(program, x)) < _NOISE


@pytest.mark.parametrize(
    ("scheme", "bound"), [(_ROUNDED8, _ROUNDING), (_ROUNDED4, _ROUNDING), (Scheme(8, "block", 32), _NOISE)], ids=str
)
def test_transposed_weights(tmp_path, scheme, bound):
    program = _planned(_program(Transposed()), scheme)
    artifact, written, method = _lowered(program, tmp_path)
    assert len(program.quantized) == 2
    for weight in program.quantized.values():
        assert _bytes(weight.integers, scheme.bits) in written
    assert len(method["delegates"]) == 1
    x = torch.randn(1, 11, 64)
    assert _error(run(artifact, tmp_path, x), _expected(program, x)) < bound


def test_layers_that_read_one_activation_share_its_rounding(tmp_path):
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.query(x) * self.key(x)

    _, _, method = _lowered(_planned(_program(Heads()), _ROUNDED8), tmp_path)
    assert method["delegates"][0]["operations"] == {"Convert": 1, "FullyConnected": 2, "Multiply": 1}


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [64, 65])
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(8),
        Scheme(8, "block", 32),
        Scheme(8, "block", 16, symmetric=False),
        Scheme(4, "block", 32),
        Scheme(4, "block", 16, symmetric=False),
    ],
    ids=str,
)
def test_tables_are_read_by_the_quantized_kernels_and_are_exact(tmp_path, scheme, columns):
    program = _planned(_program(Table(columns), words=True), scheme)
    artifact, written, method = _lowered(program, tmp_path)
    bits = scheme.bits if columns % 2 == 0 else 8  # the kernel reads pairs
    assert _bytes(_only(program).integers, bits, "high") in written
    (kernel,) = [name for name in method["kernels"] if "embedding" in name]
    assert kernel.startswith(f"quantized_decomposed::embedding_{'byte' if bits == 8 else '4bit'}.")
    x = torch.tensor([[0.0, 3, 99, 7]])
    assert torch.equal(run(artifact, tmp_path, x), _expected(program, x))


def test_scales_that_fp16_holds_take_two_bytes(tmp_path):
    """Those of 4-bit blocks have 8 significant bits."""
    program = _planned(_program(Table(), words=True), Scheme(4, "block", 32))
    _, written, _ = _lowered(program, tmp_path)
    assert _only(program).scales.half().numpy().tobytes() in written


@pytest.mark.parametrize("scheme", [Scheme(8, "block", 64), Scheme(4, "block", 32)], ids=str)
def test_a_tied_table_is_stored_once(tmp_path, scheme):
    program = _planned(_program(Tied(), words=True), {"head.weight": scheme})
    artifact, written, _ = _lowered(program, tmp_path)
    assert written.count(_bytes(_only(program).integers, scheme.bits, "high")) == 1
    assert _only(program).dequantize().numpy().tobytes() not in written
    x = torch.tensor([[0.0, 3, 99, 7]])
    assert _error(run(artifact, tmp_path, x), _expected(program, x)) < _NOISE


@pytest.mark.parametrize("scheme", [_ROUNDED8, _ROUNDED4], ids=str)
def test_a_tied_table_whose_layer_rounds_its_inputs_is_multiplied_as_integers(tmp_path, scheme):
    program = _planned(_program(Tied(), words=True), {"head.weight": scheme})
    artifact, _, method = _lowered(program, tmp_path)
    assert sum(entry["operations"].get("Convert", 0) for entry in method["delegates"]) == 1
    x = torch.tensor([[0.0, 3, 99, 7]])
    assert 0 < _error(run(artifact, tmp_path, x), _expected(program, x)) < _ROUNDING


@pytest.mark.parametrize("scheme", [None, _ROUNDED8, _ROUNDED4], ids=str)
def test_a_table_that_a_kernel_reads_and_a_delegate_multiplies_is_in_the_file_once(tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(executorch_shared, "_LEAST_BYTES", 1)
    module = Tied()
    program = _program(module, words=True)
    if scheme is None:
        artifact, path = lowered(program, tmp_path)
        table, written = module.table.weight.detach().numpy().tobytes(), path.read_bytes()
    else:
        program = _planned(program, {"head.weight": scheme})
        artifact, written, _ = _lowered(program, tmp_path)
        table = _bytes(_only(program).integers, scheme.bits, "high")
        assert scheme.bits == 8 or _bytes(_only(program).integers, scheme.bits, "low") not in written
    assert written.count(table) == 1
    x = torch.tensor([[0.0, 3, 99, 7]])
    assert _error(run(artifact, tmp_path, x), _expected(program, x)) < (_NOISE if scheme is None else _ROUNDING)


def test_a_mixed_plan(tmp_path):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 64)
            self.eight, self.four, self.whole = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.whole(torch.tanh(self.four(torch.tanh(self.eight(self.table(x.long()))))))

    module = Mixed()
    program = _planned(
        _program(module, words=True),
        {"table.weight": Scheme(8, "block", 64), "eight.weight": _ROUNDED8, "four.weight": _ROUNDED4},
    )
    artifact, written, method = _lowered(program, tmp_path)
    assert artifact.precision == "mixed"
    for name, first in (("table", "high"), ("eight", "low"), ("four", "low")):
        weight = next(weight for path, weight in program.quantized.items() if name in path)
        assert _bytes(weight.integers, weight.scheme.bits, first) in written
    assert module.whole.weight.detach().numpy().tobytes() in written
    assert len(method["delegates"]) == 1
    x = torch.tensor([[0.0, 3, 99, 7]])
    assert 0 < _error(run(artifact, tmp_path, x), _expected(program, x)) < _ROUNDING


# --- convolutions ---------------------------------------------------------------------------------------------------


class Image(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.filter = nn.Conv2d(32, 64, 3, padding=1, stride=2, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.filter(x))


def _image(groups: int, scheme: Scheme) -> Captured:
    program = captured(Image(groups), (BATCH, size(32), size(12), size(12)), torch.randn(2, 32, 12, 12))
    return _planned(program, scheme)


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_with_rounded_inputs_multiply_integers(tmp_path, groups):
    program = _image(groups, _ROUNDED8)
    artifact, written, method = _lowered(program, tmp_path)
    weight = _only(program)
    as_xnnpack = weight.integers.reshape(weight.shape).permute(0, 2, 3, 1).contiguous()
    assert as_xnnpack.numpy().tobytes() in written
    assert method["delegates"][0]["operations"]["Convert"] == 1
    assert artifact.quantization is None
    x = torch.randn(1, 32, 12, 12)
    assert 0 < _error(run(artifact, tmp_path, x), _expected(program, x)) < _ROUNDING


def test_a_convolution_without_a_kernel_stays_fp32_and_the_artifact_says_so(tmp_path):
    program = _image(1, Scheme(8))
    artifact, _, _ = _lowered(program, tmp_path)
    assert artifact.quantization == {"kept": ["filter.weight"]}
    x = torch.randn(1, 32, 12, 12)
    assert _error(run(artifact, tmp_path, x), _expected(program, x)) < _NOISE


# --- whole models ---------------------------------------------------------------------------------------------------


def _preset(program: Captured, name: str) -> Captured:
    schemes = preset_plan(program, PRESETS[name])
    return quantized(program, Plan(schemes.weights, rounding="nearest"), {})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT wide enough for its layers to be quantized, and not only its table."""
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    folder = tiny_checkpoint(tmp_path_factory.mktemp("wide") / "bert", "bert", "feature-extraction", config=wide)
    return capture_checkpoint(folder, "feature-extraction")


@pytest.mark.parametrize("preset", ["int8", "int4"])
def test_an_encoder_in_as_few_delegates_as_in_fp32_close_to_its_plan(tmp_path, encoder, preset):
    subject, program = encoder
    _, path = lowered(program, tmp_path / "fp32")
    made = _preset(program, preset)
    artifact, written, method = _lowered(made, tmp_path)
    assert len(method["delegates"]) == len(describe(path)["methods"]["forward"]["delegates"])
    assert method["delegates"][0]["operations"]["Convert"] == 8  # two layers of: q, k and v; output; up; down
    assert len(written) < path.stat().st_size * (0.4 if preset == "int8" else 0.3)
    session = Session.open(tmp_path, artifact, IDENTITY, threads=1)
    for case in subject.cases():
        feeds = {name: array[:1] for name, array in case.feeds.items()}
        expected = np.asarray(run_fp32(made.program, feeds)[0])
        given = session.run(feeds)[made.outputs[0].name]
        kept = feeds["attention_mask"].astype(bool)
        given, expected = given[kept].astype(float).ravel(), expected[kept].astype(float).ravel()
        cosine = given @ expected / np.sqrt((given @ given) * (expected @ expected))
        assert cosine > 0.999


@pytest.mark.parametrize("preset", ["int8", "int4"])
def test_results_do_not_depend_on_padding(tmp_path, encoder, preset):
    """A row's integers come from the row alone, and nothing before them from what is masked.

    Lengths around the steps in which XNNPACK's softmax goes through a row, where its sums would differ.
    """
    subject, program = encoder
    artifact, _, _ = _lowered(_preset(program, preset), tmp_path)
    session = Session.open(tmp_path, artifact, IDENTITY, threads=1)
    allowed = 10 * subject.reference.noise(subject.cases())["last_hidden_state"].max_error
    rng = np.random.default_rng(0)
    for length in 10 * [3, 19, *range(33, 63)]:  # now and then a last digit decides between two integers
        alone = {
            "input_ids": rng.integers(5, 400, (1, length)),
            "attention_mask": np.ones((1, length), np.int64),
            "token_type_ids": np.zeros((1, length), np.int64),
        }
        expected = session.run(alone)["last_hidden_state"]
        padded = {name: np.pad(array, ((0, 0), (0, 64 - length))) for name, array in alone.items()}
        actual = session.run(padded)["last_hidden_state"][:, :length]
        error = np.abs(actual - expected).max() / np.sqrt((expected.astype(float) ** 2).mean())
        assert error <= allowed, length


def test_lowering_leaves_the_captured_program_as_it_was(tmp_path):
    program = _planned(_program(Dense()), _ROUNDED8)
    before, names = str(program.program.graph), list(program.program.state_dict)
    _lowered(program, tmp_path)
    assert str(program.program.graph) == before
    assert list(program.program.state_dict) == names


def test_the_same_program_gives_the_same_bytes(tmp_path):
    program = _planned(_program(Tied(), words=True), _ROUNDED4)
    assert _lowered(program, tmp_path / "first")[1] == _lowered(program, tmp_path / "second")[1]


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "nearest"),
    [
        (Scheme(8, activations="static"), "int8 per channel, dynamic activations"),
        (Scheme(4, form="palette"), "int4 per block of 32, dynamic activations"),
        (Scheme(6, form="palette"), "int8 per channel"),
    ],
    ids=str,
)
def test_a_scheme_without_kernels_is_refused_by_name_with_the_nearest(scheme, nearest):
    program = _planned(_program(Dense()), _ROUNDED8)
    (name,) = program.quantized
    object.__setattr__(program.quantized[name], "scheme", scheme)
    with pytest.raises(RequestError) as refused:
        plan(program, Options(precision="mixed"))
    assert f"{scheme}, the scheme of dense.weight" in str(refused.value)
    assert str(refused.value).endswith(f"{nearest}.")


def test_integers_need_a_plan():
    with pytest.raises(RequestError, match="fp32 and fp16, not int8"):
        plan(_program(Dense()), Options(precision="int8"))


# --- decoders ---------------------------------------------------------------------------------------------------------


def test_a_quantized_decoder_writes_its_cache_in_place_and_repeats_no_keys(tmp_path, monkeypatch):
    """Copies of a whole cache for every token take longer than layers of 8 bits."""
    monkeypatch.setattr(quantize_sites, "_FEWEST", 128)
    program = with_integers(captured_of("llama", "fixed"), _ROUNDED8)
    assert len(program.quantized) >= 14
    artifact, _, method = _lowered(program, tmp_path)
    assert method["kernels"]["aten::index_put_"] == len(artifact.states) == 4
    assert not any("expand" in name or name.startswith("aten::copy") for name in method["kernels"])
    conversation = Decoder(Session.open(tmp_path, artifact, IDENTITY, threads=1)).start()
    wanted = at_once("llama", tokens())
    for length in (7, 1, 1):
        logits = conversation.feed(tokens()[:, conversation.length : conversation.length + length])
        assert 0 < distance(logits[0], wanted[conversation.length - 1]) < 0.1
