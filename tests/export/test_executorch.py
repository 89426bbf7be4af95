"""The ExecuTorch target: what it writes is the model, in few delegates, the same every time, or a clear refusal."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export.targets import Options, executorch, executorch_lowering, executorch_patches
from palmtop.export.targets.executorch import lower, plan, unsupported
from palmtop.runtime.backends.executorch_file import constants, describe
from palmtop.runtime.errors import RequestError, UnsupportedError
from palmtop.runtime.session import Session
from palmtop.runtime.verify import verify_artifact
from torch import nn

from .executorch_models import (
    BATCH,
    IDENTITY,
    Block,
    Convolutions,
    Recurrent,
    capture_checkpoint,
    captured,
    lowered,
    run,
    sequence,
    size,
)

# Kernels that stand before the first delegate of an encoder: embeddings and the mask's dtype.
_PRELUDE = {
    "aten::embedding.out",
    "aten::slice_copy.Tensor_out",
    "aten::sym_size.int",
    "dim_order_ops::_to_dim_order_copy.out",
    "executorch_prim::et_view.default",
}


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    module = Block()
    return module, captured(module, (BATCH, sequence(40), size(16)), torch.randn(2, 7, 16))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


# --- it is the model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "task", "precision"),
    [
        ("bert", "fill-mask", "fp32"),
        ("mpnet", "token-classification", "fp32"),  # attention written out, with relative positions
        ("modernbert", "text-classification", "fp32"),  # rotary positions
        ("deberta-v2", "feature-extraction", "fp32"),
        ("bert", "multiple-choice", "fp32"),  # two axes that vary: attention of several rows
        ("albert", "question-answering", "fp16"),
    ],
)
def test_encoders_match_eager_at_every_length(checkpoint, tmp_path, model_type, task, precision):
    subject, program = capture_checkpoint(checkpoint(model_type, task), task)
    artifact, path = lowered(program, tmp_path, precision=precision)
    assert unsupported(program, artifact) == []
    cases = subject.cases()
    report = verify_artifact(
        artifact,
        lambda: Session.open(tmp_path, artifact, IDENTITY, threads=1),
        cases,
        task=subject.task,
        tokenizer=None,
        noise=subject.reference.noise(cases),
    )
    assert report.problems == []
    assert report.cases == len(cases)
    assert all(measure.cosine > (0.99999 if precision == "fp32" else 0.9999) for measure in report.measures)
    if (model_type, task) == ("bert", "fill-mask"):
        method = describe(path)["methods"]["forward"]
        assert len(method["delegates"]) == 1
        assert set(method["kernels"]) <= _PRELUDE


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("module", "dims", "shape", "delegates"),
    [
        (Convolutions(), (BATCH, size(3), size(12), size(12)), (2, 3, 12, 12), 1),
        (Recurrent(), (BATCH, size(5), size(6)), (2, 5, 6), 1),
        (Block(), (BATCH, sequence(40), size(16)), (2, 7, 16), 1),
    ],
    ids=["convolutions", "lstm", "block"],
)
def test_modules_match_eager_in_one_delegate(tmp_path, module, dims, shape, delegates, precision):
    program = captured(module, dims, torch.randn(shape))
    artifact, path = lowered(program, tmp_path, precision=precision)
    x = torch.randn(shape)
    assert _error(run(artifact, tmp_path, x), module(x)) < (1e-5 if precision == "fp32" else 1e-2)
    assert len(describe(path)["methods"]["forward"]["delegates"]) == delegates


def test_memory_is_planned_for_the_longest_sequence(tmp_path, block):
    module, _ = block
    program = captured(module, (BATCH, sequence(1500), size(16)), torch.randn(2, 7, 16))
    artifact, _ = lowered(program, tmp_path)
    x = torch.randn(1, 1500, 16)
    assert _error(run(artifact, tmp_path, x), module(x)) < 1e-5


def test_weights_that_are_parts_of_one_memory_are_written_as_what_they_are(tmp_path):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            both = torch.randn(32, 16)
            self.first, self.second = nn.Parameter(both[:16]), nn.Parameter(both[16:])

        def forward(self, x):
            return nn.functional.linear(x, self.first), nn.functional.linear(x, self.second)

    module = Halves()
    artifact, _ = lowered(captured(module, (size(1), size(16)), torch.randn(1, 16), outputs=2), tmp_path)
    x = torch.randn(1, 16)
    outputs = Session.open(tmp_path, artifact, IDENTITY).run({"x": x.numpy()})
    for got, expected in zip(outputs.values(), module(x), strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-5)


# --- half precision -------------------------------------------------------------------------------------------------


def test_half_precision_halves_the_weights_and_keeps_the_interface(tmp_path, block):
    _, program = block
    _, whole = lowered(program, tmp_path / "whole")
    artifact, half = lowered(program, tmp_path / "half", precision="fp16")
    assert artifact.precision == "fp16"
    assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {"float32"}
    operations = describe(half)["methods"]["forward"]["delegates"][0]["operations"]
    assert operations["Convert"] >= 2
    big = nn.Linear(256, 256)
    sizes = [
        describe(lowered(captured(big, (size(1), size(256)), torch.randn(1, 256)), tmp_path / p, precision=p)[1])[
            "weights"
        ]
        for p in ("fp32", "fp16")
    ]
    assert sizes[1] < 0.52 * sizes[0]
    assert describe(whole)["methods"]["forward"]["delegates"][0]["operations"].get("Convert", 0) == 0


def test_norms_survive_values_whose_squares_fp16_cannot_hold(tmp_path):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.dense = nn.LayerNorm(32), nn.Linear(32, 8)

        def forward(self, x):
            rms = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.dense(self.norm(x) + rms)

    module = Norm()
    artifact, _ = lowered(captured(module, (BATCH, size(32)), torch.randn(2, 32)), tmp_path, precision="fp16")
    x = torch.randn(1, 32)
    x[:, 3] = 900.0
    assert _error(run(artifact, tmp_path, x), module(x)) < 1e-2


def test_modules_named_in_keep_fp32_compute_in_fp32(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    program = captured(module, (BATCH, size(64)), torch.randn(2, 64))
    x = torch.randn(1, 64)
    errors = []
    for place, keep in enumerate([(), ("0", "1", "2")]):
        artifact, _ = lowered(program, tmp_path / str(place), precision="fp16", keep_fp32=keep)
        errors.append(_error(run(artifact, tmp_path / str(place), x), module(x)))
    assert errors[0] > 1e-5 > errors[1]


# --- the plan -------------------------------------------------------------------------------------------------------


def test_batch_is_one_and_the_sequence_dynamic_or_of_one_length(block):
    _, program = block
    dynamic = plan(program, Options()).inputs[0].dims
    assert [str(dim) for dim in dynamic] == ["1", "sequence=1..40", "16"]
    several = plan(program, Options(lengths=(8, 32))).inputs[0].dims
    assert str(several[1]) == "sequence=1..32"
    assert plan(program, Options(lengths=(32,))).inputs[0].dims[1].constant == 32
    assert plan(program, Options(dynamic=False)).inputs[0].dims[1].constant == 40


def test_an_axis_without_a_bound_gets_one(tmp_path):
    from palmtop.runtime.manifest import Dim

    program = captured(nn.Linear(4, 4), (Dim(symbol="rows", min=1), size(4)), torch.randn(3, 4))
    dim = plan(program, Options()).inputs[0].dims[0]
    assert dim.max == 64


def test_a_precision_it_does_not_write_is_a_wrong_request(block):
    with pytest.raises(RequestError, match="fp32 and fp16, not int8"):
        plan(block[1], Options(precision="int8"))


def test_the_file_says_whose_it_is_and_how_long_a_sequence_it_takes(tmp_path, block):
    _, path = lowered(block[1], tmp_path)
    assert constants(path) == {"palmtop_identity": IDENTITY, "get_max_seq_len": 40}


# --- the same every time --------------------------------------------------------------------------------------------

_AGAIN = """
import sys
from pathlib import Path
import torch
from tests.export.executorch_models import *
torch.manual_seed(0)
program = captured(Block(), (BATCH, sequence(40), size(16)), torch.ones(2, 7, 16))
lowered(program, Path(sys.argv[1]))
"""


def test_the_same_program_gives_the_same_bytes_in_any_process(tmp_path):
    torch.manual_seed(0)
    program = captured(Block(), (BATCH, sequence(40), size(16)), torch.ones(2, 7, 16))
    digests = {_digest(lowered(program, tmp_path / name)[1]) for name in ("first", "second")}
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "1234", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", _AGAIN, str(tmp_path / "third")], check=True, env=environment, cwd=root)
    digests.add(_digest(tmp_path / "third" / "executorch" / "model.pte"))
    assert len(digests) == 1


# --- patches --------------------------------------------------------------------------------------------------------

_CORRECTIONS = {"bounds", "bounds of shapes", "layouts"}  # these are there for what they change
_SKIPPING = sorted(set(executorch_patches.PATCHES) - _CORRECTIONS)


@pytest.mark.parametrize(
    ("module", "dims", "shape"),
    [
        (Block(), (BATCH, sequence(40), size(16)), (2, 7, 16)),
        (Convolutions(), (BATCH, size(3), size(12), size(12)), (2, 3, 12, 12)),
        (Recurrent(), (BATCH, size(3), size(6)), (2, 3, 6)),
    ],
    ids=["block", "convolutions", "lstm"],
)
def test_what_is_left_out_changes_no_byte(tmp_path, monkeypatch, module, dims, shape):
    program = captured(module, dims, torch.randn(shape))
    quick = _digest(lowered(program, tmp_path / "quick")[1])
    monkeypatch.setattr(executorch_lowering, "quick", lambda: executorch_patches.quick(only=_CORRECTIONS))
    slow = _digest(lowered(program, tmp_path / "slow")[1])
    assert quick == slow


@pytest.fixture(scope="module")
def lowered_before(block, tmp_path_factory):
    """The block, of which nothing is done for the first time any more."""
    lowered(block[1], tmp_path_factory.mktemp("before"))
    return block[1]


@pytest.mark.parametrize("name", _SKIPPING)
def test_each_patch_still_saves_work(tmp_path, monkeypatch, lowered_before, name):
    """Counted in calls into PyTorch's tracing, its list of operations and its compiler, without and with the patch."""
    work = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal work
            work += 1
            return function(*args, **kwargs)

        return call

    from torch._export import utils
    from torch._inductor.pattern_matcher import PatternMatcherPass
    from torch._subclasses.fake_tensor import FakeTensorMode

    for owner, attribute in (
        (torch.fx.Interpreter, "run"),
        (FakeTensorMode, "dispatch"),
        (utils, "_collect_all_valid_cia_ops_for_namespace"),
        (PatternMatcherPass, "apply"),
    ):
        monkeypatch.setattr(owner, attribute, counted(getattr(owner, attribute)))
    lowered(lowered_before, tmp_path / "with")
    with_it, work = work, 0
    rest = set(executorch_patches.PATCHES) - {name}
    monkeypatch.setattr(executorch_lowering, "quick", lambda: executorch_patches.quick(only=rest))
    lowered(lowered_before, tmp_path / "without")
    assert work > with_it


def test_the_table_of_operations_is_the_one_that_executorch_reads_itself():
    from importlib import resources

    from executorch.exir.dialects import edge
    from executorch.exir.dialects.edge import _ops
    from ruamel.yaml import YAML

    theirs = YAML(typ="safe").load(resources.read_text(edge, "edge.yaml", encoding="utf-8"))
    assert _ops._edge_dialect_info == {entry["inherits"]: entry for entry in theirs}


def test_everything_is_put_back_even_when_lowering_fails(tmp_path, monkeypatch, block):
    from executorch.backends.xnnpack.operators import node_visitor

    before = {name: getattr(owner, attribute) for name, (owner, attribute, _) in executorch_patches.PATCHES.items()}
    visitors = dict(node_visitor._node_visitor_dict)
    root = logging.getLogger()
    state = (list(root.handlers), root.level, root.manager.disable)

    def fails(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(executorch_lowering, "to_edge_transform_and_lower", fails)
    with pytest.raises(UnsupportedError):
        lowered(block[1], tmp_path)
    for name, (owner, attribute, _) in executorch_patches.PATCHES.items():
        assert getattr(owner, attribute) is before[name]
    assert dict(node_visitor._node_visitor_dict) == visitors
    assert (list(root.handlers), root.level, root.manager.disable) == state


def test_lowering_leaves_the_captured_program_as_it_was(tmp_path, block):
    _, program = block
    graph, weights = str(program.program.graph), set(program.program.state_dict)
    lowered(program, tmp_path, precision="fp16")
    assert str(program.program.graph) == graph
    assert set(program.program.state_dict) == weights
    assert {value.dtype for value in program.program.state_dict.values()} == {torch.float32}


def test_lowering_is_quiet(tmp_path, block, capfd):
    lowered(block[1], tmp_path)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


# --- refusals -------------------------------------------------------------------------------------------------------


class _Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = _Digamma()

    def forward(self, x):
        return torch.linalg.inv(x), self.inner(x), torch.relu(x)


class _Digamma(nn.Module):
    def forward(self, x):
        return torch.special.digamma(x.abs() + 1)


def test_all_operations_without_a_kernel_are_listed_with_module_and_remedy():
    program = captured(_Odd(), (BATCH, size(4), size(4)), torch.randn(2, 4, 4), outputs=3)
    found = unsupported(program, plan(program, Options()))
    assert {(entry.operation.partition(" ")[0], entry.module) for entry in found} == {
        ("aten.linalg_inv.default", ""),
        ("aten.special_digamma.default", "inner"),
    }
    assert all("--to onnx,coreml" in entry.remedy for entry in found)


def test_an_axis_that_lowering_would_fix_is_refused(block):
    """As taking operations apart may do: executorch itself goes on without a word."""
    _, program = block
    fixed = program.specialize({"batch": size(1), "sequence": size(7)}).program
    with pytest.raises(UnsupportedError, match=r"fixes axis 1 of 'x' \(sequence=1..40\) to 7(.|\n)*--static"):
        executorch_lowering._check_axes(fixed, plan(program, Options()))


def test_an_axis_that_lowering_would_bound_is_refused(block):
    _, program = block
    bounded = program.specialize({"batch": size(1), "sequence": sequence(20)}).program
    with pytest.raises(UnsupportedError, match=r"bounds axis 1 of 'x' \(sequence=1..40\) by 20(.|\n)*--static"):
        executorch_lowering._check_axes(bounded, plan(program, Options()))


def test_a_failure_inside_executorch_names_operation_module_and_remedy(tmp_path, monkeypatch, block):
    def fails(*args, **kwargs):
        raise RuntimeError("Missing out variants: {'aten::layer_norm'}")

    monkeypatch.setattr(executorch_lowering, "to_edge_transform_and_lower", fails)
    with pytest.raises(UnsupportedError) as error:
        lowered(block[1], tmp_path)
    message = str(error.value)
    assert "aten.layer_norm, in norm" in message
    assert executorch.REMEDY in message
    assert "Traceback" not in message
    assert list(tmp_path.rglob("*.pte")) == []


def test_a_file_that_calls_unknown_kernels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(executorch_lowering, "runtime_kernels", lambda: frozenset({"aten::add.out"}))
    program = _integers()
    artifact = plan(program, Options())
    with pytest.raises(UnsupportedError, match=r"aten::embedding\.out"):
        lower(program, artifact, IDENTITY, tmp_path / "model.pte")
    assert not (tmp_path / "model.pte").exists()


def _integers():
    from palmtop.export.capture import capture, trace_module
    from palmtop.runtime.manifest import TensorSpec

    table = nn.Embedding(4, 4).requires_grad_(False)
    spec = TensorSpec("input", "int64", (size(3),))
    return capture(table, {"input": torch.tensor([0, 1, 2])}, [spec], ["output"], trace=trace_module)


def test_a_full_disk_is_no_question_of_operations(tmp_path, monkeypatch, block):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(executorch_lowering, "to_edge_transform_and_lower", full)
    with pytest.raises(OSError, match="No space"):
        lowered(block[1], tmp_path)
