"""The ExecuTorch backend: it runs what is whole, refuses what is not, and says what to install."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from palmtop.runtime.backends import executorch as backend
from palmtop.runtime.backends.executorch_file import constants, describe
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.manifest import CACHE_LAYOUT, Artifact, Dim, StateSpec, TensorSpec
from palmtop.runtime.session import Session

IDENTITY = "feedc0de"


class _Model(torch.nn.Module):
    """A table that no delegate takes, and a layer that one does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dense = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.dense(self.table(ids))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return _Model().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def artifact():
    ids = TensorSpec("ids", "int64", (Dim(size=1), Dim(symbol="sequence", min=1, max=16)))
    output = TensorSpec("output", "float32", (Dim(size=1), Dim(symbol="sequence", min=1, max=16), Dim(size=3)))
    return Artifact("executorch", "executorch/model.pte", "fp32", (ids,), (output,))


@pytest.fixture(scope="module")
def root(model, artifact, tmp_path_factory):
    length = torch.export.Dim("sequence", min=1, max=16)
    program = torch.export.export(model, (torch.zeros(1, 5, dtype=torch.long),), dynamic_shapes={"ids": {1: length}})
    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        constant_methods={backend.IDENTITY_METHOD: IDENTITY, "get_max_seq_len": 16, "ratio": 0.5, "flag": True},
    )
    folder = tmp_path_factory.mktemp("bundle")
    path = folder / artifact.path
    path.parent.mkdir()
    path.write_bytes(edge.to_executorch().buffer)
    return folder


@pytest.fixture
def altered(root, artifact, tmp_path):
    """`altered(change)`: a bundle whose model file is what `change` makes of its bytes."""

    def make(change) -> Path:
        path = tmp_path / artifact.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(change((root / artifact.path).read_bytes()))
        return tmp_path

    return make


def _ids(length: int) -> dict[str, np.ndarray]:
    return {"ids": np.arange(length, dtype=np.int64)[None] % 10}


@pytest.mark.parametrize("length", [1, 5, 16])
def test_it_computes_what_the_model_computes_at_every_length(root, artifact, model, length):
    session = Session.open(root, artifact, IDENTITY, threads=1)
    expected = model(torch.from_numpy(_ids(length)["ids"])).numpy()
    np.testing.assert_allclose(session.run(_ids(length))["output"], expected, atol=1e-6)
    assert session.engine.startswith("ExecuTorch 1.")


def test_a_result_is_not_overwritten_by_the_next_call(root, artifact):
    session = Session.open(root, artifact, IDENTITY)
    first = session.run(_ids(4))["output"]
    kept = first.copy()
    session.run({"ids": np.full((1, 4), 9)})
    np.testing.assert_array_equal(first, kept)


def test_feeds_that_may_not_be_written_are_taken_without_a_warning(root, artifact):
    feeds = _ids(4)
    feeds["ids"].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Session.open(root, artifact, IDENTITY).run(feeds)


def test_sizes_beyond_the_signature_are_a_wrong_request(root, artifact):
    with pytest.raises(RequestError, match="17"):
        Session.open(root, artifact, IDENTITY).run(_ids(17))
    runner = backend.ExecutorchRunner(root / artifact.path, artifact, None)
    with pytest.raises(RequestError, match="ExecuTorch could not run"):
        runner.run(_ids(17))


def test_loading_writes_nothing_to_the_terminal(root, artifact, capfd):
    Session.open(root, artifact, IDENTITY, threads=2)
    Session.open(root, artifact, IDENTITY, threads=1)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_the_model_of_another_bundle_is_refused(root, artifact):
    with pytest.raises(DamagedError, match="carries identity feedc0de"):
        Session.open(root, artifact, "0" * 8)


def test_a_method_that_is_not_there_is_damage(root, artifact):
    other = dataclasses.replace(artifact, methods={"forward": "prefill"})
    with pytest.raises(DamagedError, match="no method 'prefill'"):
        Session.open(root, other, IDENTITY)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.7, 0.999])
def test_a_file_that_was_cut_short_is_damage(altered, artifact, share):
    root = altered(lambda data: data[: int(len(data) * share)])
    with pytest.raises(DamagedError, match=r"model\.pte"):
        Session.open(root, artifact, IDENTITY)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(200), b"\x00" * 64, b"\xff" * 4096], ids=range(4))
def test_a_file_that_is_something_else_is_damage(altered, artifact, content):
    with pytest.raises(DamagedError, match=r"not a whole \.pte"):
        Session.open(altered(lambda data: content), artifact, IDENTITY)


def test_a_file_that_is_missing_is_damage(artifact, tmp_path):
    with pytest.raises(DamagedError, match="cannot be read"):
        Session.open(tmp_path, artifact, IDENTITY)


def test_whatever_byte_is_wrong_reading_the_contents_ends_well_or_in_damage(root, artifact, tmp_path):
    whole = (root / artifact.path).read_bytes()
    dice = random.Random(0)
    path = tmp_path / "model.pte"
    damaged = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 1, 4, 32))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            describe(path)
        except DamagedError:
            damaged += 1
    assert 0 < damaged < 300


def test_the_contents_tell_delegates_kernels_and_constants(root, artifact):
    path = root / artifact.path
    found = describe(path)
    assert found["constants"] == constants(path)
    assert found["constants"] == {"palmtop_identity": IDENTITY, "get_max_seq_len": 16, "ratio": 0.5, "flag": True}
    method = found["methods"]["forward"]
    assert [delegate["backend"] for delegate in method["delegates"]] == ["XnnpackBackend"]
    assert method["delegates"][0]["operations"]["FullyConnected"] == 1
    assert method["kernels"] == {"aten::embedding.out": 1}
    assert 0 < method["delegated"] < 1
    assert found["weights"] >= 4 * (10 * 4 + 4 * 3 + 3)
    contents = backend.BACKEND.contents(path)
    assert contents.operations == {"aten::embedding.out": 1}
    assert contents.delegated == method["delegated"]


def test_the_names_of_delegated_operations_are_those_of_the_schema():
    import importlib.resources
    import re

    from palmtop.runtime.backends.executorch_file import _XNNPACK_OPERATIONS

    schema = importlib.resources.files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_text()
    union = re.search(r"union XNodeUnion \{(.*?)\}", schema, re.DOTALL)
    assert union is not None
    members = re.findall(r"XNN(\w+)(?:\s*:\s*\w+)?,", union[1])
    assert members == list(_XNNPACK_OPERATIONS)


def test_the_contents_are_read_without_torch(root, artifact):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from palmtop.runtime.backends.executorch_file import describe\n"
        "from palmtop.runtime.backends import executorch\n"
        "assert describe(Path(sys.argv[1]))['constants']\n"
        "assert executorch.missing() is None\n"
        "assert not {'torch', 'executorch'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", script, str(root / artifact.path)], check=True)


@pytest.mark.parametrize("package", ["torch", "executorch"])
def test_what_is_missing_is_said_with_how_to_install_it(root, artifact, monkeypatch, package):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    said = backend.missing()
    assert said is not None
    assert package in said
    assert "needs torch" in said
    assert "pip install 'palmtop[executorch]'" in said
    with pytest.raises(RequestError, match="palmtop"):
        Session.open(root, artifact, IDENTITY)


class _Counter(torch.nn.Module):
    """Adds up what it is given, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sum", torch.zeros(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sum.add_(x)
        return self.sum * 1.0


def _counting(folder, layout):
    """A session with one state of this layout, and a function that adds to a state and says what is in it."""
    program = torch.export.export(_Counter(), (torch.ones(1, 3),))
    (folder / "model.pte").write_bytes(to_edge_transform_and_lower(program).to_executorch().buffer)
    dims = (Dim(size=1), Dim(size=3))
    artifact = Artifact(
        "executorch",
        "model.pte",
        "fp32",
        (TensorSpec("x", "float32", dims),),
        (TensorSpec("output", "float32", dims),),
        states=(StateSpec("sum", "float32", dims, layout),),
    )
    session = Session(artifact, backend.ExecutorchRunner(folder / "model.pte", artifact, 1))

    def add(value, state):
        return session.run({"x": np.full((1, 3), value)}, state)["output"][0, 0]

    return session, add


def test_states_do_not_leak_into_each_other_and_begin_as_zeros(tmp_path):
    session, add = _counting(tmp_path, "row-major")
    one, other = session.new_state(), session.new_state()
    assert [add(1, one), add(10, other), add(2, one), add(20, other)] == [1, 10, 3, 30]
    del one
    again = session.new_state()
    assert [add(5, again), add(1, other), add(5, again)] == [5, 31, 10]
    assert [add(7, None), add(7, None)] == [7, 7]


def test_a_cache_that_nobody_holds_any_more_serves_the_next_conversation(tmp_path):
    """Its old keys are behind the mask, and loading anew would take as long as many tokens."""
    session, add = _counting(tmp_path, CACHE_LAYOUT)
    one, other = session.new_state(), session.new_state()
    assert [add(1, one), add(10, other)] == [1, 10]
    del one
    again, third = session.new_state(), session.new_state()
    assert [add(2, again), add(20, other), add(3, third)] == [3, 30, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cache_with_what_no_mask_can_hide_is_not_used_again(tmp_path, value):
    session, add = _counting(tmp_path, CACHE_LAYOUT)
    state = session.new_state()
    assert not np.isfinite(add(value, state))
    del state
    assert add(2, session.new_state()) == 2
