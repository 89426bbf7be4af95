"""Every workaround for coremltools is still needed: without it something is wrong that is right with it."""

from __future__ import annotations

import contextlib
import importlib
import logging

import numpy as np
import pytest
import torch
from palmtop.export.targets import Options, coreml_compat
from palmtop.export.targets.coreml_compat import WORKAROUNDS, compatible, convertible
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.manifest import Dim

from .coreml_models import BATCH, SEQUENCE, Call, captured_module, distance, kinds, lowered, run

aten = torch.ops.aten
WIDTH = Dim(size=6)
TEXT = (BATCH, SEQUENCE, WIDTH)


@contextlib.contextmanager
def without(name: str):
    """Conversions in this block go without one workaround."""
    entry = WORKAROUNDS.pop(name)
    try:
        yield
    finally:
        WORKAROUNDS[name] = entry


@pytest.fixture(scope="module", autouse=True)
def order_of_workarounds():
    before = list(WORKAROUNDS)
    yield
    assert sorted(WORKAROUNDS) == sorted(before)


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("aliases_are_identities", [aten.alias.default]),
        ("truth_values_combine", [aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor]),
        ("casts_by_overload", [aten.to.dtype]),
        ("recurrent_layers_by_overload", [aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]),
    ],
)
def test_coremltools_has_no_translation_of_its_own(name, operations):
    with compatible(without=(name,)):
        assert not any(map(convertible, operations))
    with compatible():
        assert all(map(convertible, operations))


def test_aliases_convert(tmp_path):
    module = Call(lambda self, x: aten.alias(torch.relu(x)) * 2)
    program = lowered(captured_module(module, TEXT), tmp_path / "m.mlpackage")
    x = torch.randn(1, 5, 6)
    assert distance(run(program, {"x": x})["y"], module(x)) == 0


def test_tensors_combine_with_and_and_or(tmp_path):
    module = Call(lambda self, x: ((((x > 0) & (x < 1)) | (x < -1)) ^ (x > 2)).float())
    program = lowered(captured_module(module, TEXT), tmp_path / "m.mlpackage")
    x = torch.randn(1, 40, 6)
    assert distance(run(program, {"x": x})["y"], module(x)) == 0


def test_bits_of_integers_are_not_taken_for_truth_values(tmp_path):
    captured = captured_module(Call(lambda self, x: (x | 2) & 3), (BATCH, SEQUENCE), dtype="int64")
    with pytest.raises(UnsupportedError, match=r"__or__.*\n*.*bits of integers"):
        lowered(captured, tmp_path / "m.mlpackage")


def test_gelu_by_tanh_is_not_the_exact_one(tmp_path):
    module = Call(lambda self, x: torch.nn.functional.gelu(x, approximate="tanh"))
    captured = captured_module(module, TEXT)
    x = torch.linspace(-4, 4, 30).reshape(1, 5, 6)
    program = lowered(captured, tmp_path / "m.mlpackage")
    assert distance(run(program, {"x": x})["y"], torch.nn.functional.gelu(x, approximate="tanh")) < 1e-6
    with without("gelu_is_approximate_when_asked"):
        try:
            wrong = lowered(captured, tmp_path / "wrong.mlpackage")
        except UnsupportedError:
            return
        assert distance(run(wrong, {"x": x})["y"], torch.nn.functional.gelu(x, approximate="tanh")) > 1e-5


def test_small_numbers_are_divided_by_as_they_are(tmp_path):
    module = Call(lambda self, x: 1 / x)
    captured = captured_module(module, TEXT)
    x = torch.linspace(1e-3, 4, 30).reshape(1, 5, 6)
    program = lowered(captured, tmp_path / "m.mlpackage")
    assert distance(run(program, {"x": x})["y"], module(x)) < 1e-6
    with without("reciprocals_are_exact"):
        wrong = lowered(captured, tmp_path / "wrong.mlpackage")
        assert distance(run(wrong, {"x": x})["y"], module(x)) > 1e-3


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_a_recurrent_layer_stays_one(layer, tmp_path):
    torch.manual_seed(1)
    rnn = layer(6, 8, batch_first=True, bidirectional=layer is torch.nn.LSTM)

    def forward(self, x):
        y, last = self.rnn(x)
        return y, last[1] if isinstance(last, tuple) else last

    module = Call(forward, rnn=rnn)
    captured = captured_module(module, (BATCH, Dim(size=9), WIDTH), ("y", "last"))
    program = lowered(captured, tmp_path / "m.mlpackage")
    x = torch.randn(1, 9, 6)
    got, expected = run(program, {"x": x}), module(x)
    assert distance(got["y"], expected[0]) < 1e-6
    assert distance(got["last"], expected[1]) < 1e-6
    assert len(kinds(program)) < 40  # nine steps, unrolled, are more


def test_an_input_can_be_an_output_and_a_value_two_outputs(tmp_path):
    def forward(self, x):
        y = torch.relu(x)
        return y, y, x

    captured = captured_module(Call(forward), TEXT, ("a", "b", "c"))
    with without("outputs_have_values_of_their_own"), pytest.raises(UnsupportedError):
        lowered(captured, tmp_path / "without.mlpackage")
    program = lowered(captured, tmp_path / "with.mlpackage")
    x = torch.randn(1, 5, 6)
    got = run(program, {"x": x})
    assert [distance(got[name], value) for name, value in zip("abc", forward(None, x), strict=True)] == [0, 0, 0]


def test_sizes_can_be_divided(tmp_path):
    module = Call(lambda self, x: x[:, : (x.shape[1] + 1) // 2] * (x.shape[1] % 4))
    captured = captured_module(module, TEXT)
    with without("sizes_stay_integers"), pytest.raises(UnsupportedError):
        lowered(captured, tmp_path / "without.mlpackage")
    program = lowered(captured, tmp_path / "with.mlpackage")
    for length in (3, 9, 48):
        x = torch.randn(1, length, 6)
        got = run(program, {"x": x})["y"]
        assert np.array_equal(got, module(x).numpy())


@pytest.mark.parametrize("rounding", ["floor", "trunc"])
def test_lengths_in_samples_become_places(rounding, tmp_path):
    """As models of sounds mark the last frame of each row."""

    def forward(self, x):
        places = torch.div(x[:, 0], 320, rounding_mode=rounding)
        return torch.zeros(x.shape[0], 6).index_put((torch.arange(x.shape[0]), places), torch.tensor(1.0))

    module = Call(forward)
    captured = captured_module(module, (BATCH, WIDTH), dtype="int64")
    with without("sizes_stay_integers"), pytest.raises(UnsupportedError, match="share the same data type"):
        lowered(captured, tmp_path / "without.mlpackage")
    program = lowered(captured, tmp_path / "with.mlpackage")
    for samples in (641, 320, 319, 1919):
        x = torch.full((1, 6), samples)
        assert np.array_equal(run(program, {"x": x})["y"], module(x).numpy())


def test_whole_numbers_are_put_into_whole_numbers(tmp_path):
    def forward(self, x):
        found = torch.zeros(x.shape, dtype=torch.int64)
        return found.index_put((torch.arange(x.shape[0]), x[:, 0]), torch.tensor(1)).cumsum(-1)

    module = Call(forward)
    captured = captured_module(module, (BATCH, WIDTH), dtype="int64")
    with without("values_are_put_as_what_is_there"), pytest.raises(UnsupportedError, match="same data type"):
        lowered(captured, tmp_path / "without.mlpackage")
    program = lowered(captured, tmp_path / "with.mlpackage")
    x = torch.full((1, 6), 2)
    assert np.array_equal(run(program, {"x": x})["y"], module(x).numpy())


def test_a_choice_between_numbers_has_the_shape_of_its_condition(tmp_path):
    module = Call(lambda self, x: torch.where(x > 0, 0.0, -30000.0))
    captured = captured_module(module, TEXT)

    def declared_rank(path) -> int:
        operation = next(op for op in lowered(captured, path).operations if op.type == "select")
        return len(operation.outputs[0][1].shape)

    with without("select_has_the_shape_of_its_condition"):
        assert declared_rank(tmp_path / "without.mlpackage") == 0
    assert declared_rank(tmp_path / "with.mlpackage") == 3


def test_token_ids_are_not_guarded_against_being_negative(tmp_path):
    module = Call(lambda self, x: self.table(x), table=torch.nn.Embedding(5, 4))
    captured = captured_module(module, (BATCH, SEQUENCE), dtype="int64")
    with without("embeddings_have_no_negative_indices"):
        assert "greater_equal" in kinds(lowered(captured, tmp_path / "without.mlpackage", ios="18.0"))
    program = lowered(captured, tmp_path / "with.mlpackage", ios="18.0")
    assert kinds(program) == ["gather"]
    ids = torch.tensor([[0, 4, 2]])
    assert distance(run(program, {"x": ids})["y"], module(ids)) == 0


def test_an_index_that_may_be_negative_stays_guarded(tmp_path):
    module = Call(lambda self, x: torch.arange(9.0)[x - 3])
    captured = captured_module(module, (BATCH, SEQUENCE), dtype="int64")
    program = lowered(captured, tmp_path / "m.mlpackage", ios="18.0")
    index = torch.tensor([[0, 4, 2, 1]])
    assert distance(run(program, {"x": index})["y"], module(index)) == 0


@pytest.mark.parametrize(
    ("name", "owner", "attribute"),
    [
        (
            "reshape_solved_by_division",
            "coremltools.converters.mil.mil.ops.defs.iOS15.tensor_transformation:reshape",
            "enforce_volumetric_constraint",
        ),
        (
            "overflow_checked_by_range",
            "coremltools.converters.mil.mil.passes.defs.quantization:FP16ComputePrecision",
            "fp16_overflow",
        ),
        ("no_weights_to_protect", "coremltools.converters.mil.mil.block:Block", "_propagate_nonreplaceable_vars"),
    ],
)
def test_the_slow_way_is_not_taken_and_the_package_is_the_same(name, owner, attribute, tmp_path, monkeypatch):
    layer = torch.nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    captured = captured_module(Call(lambda self, x: self.layer(x), layer=layer), TEXT)
    module, _, classname = owner.partition(":")
    cls = getattr(importlib.import_module(module), classname)
    slow, calls = cls.__dict__[attribute], []
    function = slow.__func__ if isinstance(slow, staticmethod) else slow

    def counted(*args):
        calls.append(1)
        return function(*args)

    monkeypatch.setattr(cls, attribute, staticmethod(counted) if isinstance(slow, staticmethod) else counted)
    lowered(captured, tmp_path / "with.mlpackage", Options(precision="fp16"))
    taken = len(calls)
    with without(name):
        lowered(captured, tmp_path / "without.mlpackage", Options(precision="fp16"))
    assert taken == 0
    assert len(calls) > 10
    for file in (tmp_path / "with.mlpackage").rglob("*.*"):
        if file.is_file():
            other = tmp_path / "without.mlpackage" / file.relative_to(tmp_path / "with.mlpackage")
            assert file.read_bytes() == other.read_bytes()


def test_a_weight_too_large_for_fp16_keeps_its_operation_in_fp32(tmp_path):
    module = Call(lambda self, x: x * torch.tensor([1.0, 2.0, 70000.0, 3.0, 4.0, 5.0]))
    program = lowered(captured_module(module, TEXT), tmp_path / "m.mlpackage", Options(precision="fp16"))
    x = torch.rand(1, 3, 6)
    assert distance(run(program, {"x": x})["y"], module(x)) == 0


def test_every_workaround_says_what_it_is_for():
    for entry in WORKAROUNDS.values():
        assert entry.affected.startswith("coremltools")
        assert entry.symptom
        assert entry.apply.__doc__


def test_coremltools_is_as_before_afterwards():
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.mil.block import Block
    from coremltools.converters.mil.mil.ops.defs.iOS15.control_flow import select

    def state():
        table = coreml_compat._registry().name_to_func_mapping
        return dict(table), dict(vars(Block)), dict(vars(select)), ops._tqdm, logging.getLogger("coremltools").level

    before = state()
    with contextlib.suppress(ZeroDivisionError), compatible():
        assert state() != before
        raise ZeroDivisionError
    assert state() == before


def test_a_conversion_says_nothing(tmp_path, capfd, caplog):
    captured = captured_module(Call(lambda self, x: torch.relu(x)), TEXT)
    capfd.readouterr()
    lowered(captured, tmp_path / "m.mlpackage", Options(precision="fp16"))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name == "coremltools"]
