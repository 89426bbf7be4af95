"""A decoder so small that numpy computes it, in each form in which artifacts keep their cache.

Token t at position p leaves the key `table[t] * (p + 1)`; the logits are a matrix product of the sum of all keys. So
a token that is lost, doubled or in the wrong place changes every logit after it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from palmtop.runtime.manifest import CACHE_LAYOUT, Artifact, Dim, StateSpec, TensorSpec
from palmtop.runtime.session import Session

VOCABULARY, DEPTH = 12, 4
_RANDOM = np.random.default_rng(3)
TABLE = _RANDOM.standard_normal((VOCABULARY, DEPTH)).astype(np.float32)
HEAD = _RANDOM.standard_normal((DEPTH, VOCABULARY)).astype(np.float32)
ONE = Dim(size=1)


def logits_of(ids: np.ndarray, bias: float = 0.0) -> np.ndarray:
    """What every form must give after (rows, S) tokens: (rows, vocabulary)."""
    keys = TABLE[ids] * np.arange(1, ids.shape[1] + 1, dtype=np.float32)[:, None]
    return keys.sum(axis=1) @ HEAD + np.float32(bias)


class ToyRunner:
    """Computes any of the forms, as its artifact's signature says, and counts the tokens of each call."""

    engine = "numpy"
    identity = None

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.calls: list[int] = []

    def new_state(self) -> dict[str, np.ndarray]:
        return {"cache": np.zeros((1, 1, self.artifact.states[0].dims[2].constant, DEPTH), np.float32)}

    def run(self, feeds: dict[str, np.ndarray], state: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        ids = feeds.get("input_ids", feeds.get("decoder_input_ids"))
        self.calls.append(ids.shape[1])
        past = feeds.get("past_key_0") if state is None else state["cache"]
        if past is None:
            past = np.zeros((len(ids), 1, 0, DEPTH), np.float32)
        grows = "start" not in feeds
        start = past.shape[2] if grows else int(feeds["start"][0])
        new = TABLE[ids] * np.arange(start + 1, start + 1 + ids.shape[1], dtype=np.float32)[:, None]
        if grows:
            present = np.concatenate([past, new[:, None]], axis=2)
        else:
            present = past.copy()
            present[:, 0, start : start + ids.shape[1]] = new
        if state is not None:
            state["cache"] = present
        filled = present.shape[2] if grows else start + ids.shape[1]  # what lies beyond is not looked at
        logits = present[:, 0, :filled].sum(axis=1) @ HEAD
        for name in ("cross_key_0", "encoder_hidden_states"):
            logits = logits + feeds[name].reshape(len(ids), -1).sum(axis=1)[:, None] if name in feeds else logits
        return {"logits": logits[:, None], "present_key_0": present}


def toy_session(
    form: str,
    sequence: Dim | None = None,
    batch: Dim | None = None,
    extra: tuple[TensorSpec, ...] = (),
    layout: str = CACHE_LAYOUT,
) -> Session:
    """`form`: growing, fixed (a context of 10), states (likewise), or none (no cache at all)."""
    sequence = sequence or Dim(symbol="sequence", min=1)
    batch = batch or (ONE if form in ("fixed", "states") else Dim(symbol="batch", min=1))
    logits = TensorSpec("logits", "float32", (batch, ONE, Dim(size=VOCABULARY)))
    inputs, outputs, states = [TensorSpec("input_ids", "int64", (batch, sequence))], [logits], ()
    length = Dim(symbol="past", min=0) if form == "growing" else Dim(size=10)
    if form in ("fixed", "states"):
        inputs.append(TensorSpec("start", "int32", (ONE,)))
    if form in ("fixed", "growing"):
        dims = (batch, ONE, length, Dim(size=DEPTH))
        inputs.append(TensorSpec("past_key_0", "float32", dims))
        total = Dim(symbol="total", min=1) if form == "growing" else length
        outputs.append(TensorSpec("present_key_0", "float32", (*dims[:2], total, dims[3])))
    if form == "states":
        states = (StateSpec("cache", "float32", (ONE, ONE, Dim(size=10), Dim(size=DEPTH)), layout),)
    artifact = Artifact(
        "onnx",
        f"onnx/{form}.onnx",
        "fp32",
        (*inputs, *extra),
        tuple(outputs),
        states=states,
        methods={"decoder": "main"},
    )
    return Session(artifact, ToyRunner(artifact))


def write_growing_onnx(path: Path) -> Artifact:
    """The growing form as a real ONNX file, and its artifact."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Shape", ["past_key_0"], ["start"], start=2, end=3),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Add", ["start", "length"], ["total"]),
        helper.make_node("Squeeze", ["start"], ["first"]),
        helper.make_node("Squeeze", ["total"], ["last"]),
        helper.make_node("Range", ["first", "last", "one"], ["places"]),
        helper.make_node("Add", ["places", "one"], ["counts"]),
        helper.make_node("Cast", ["counts"], ["factors"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["factors", "axis1"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["keys"]),
        helper.make_node("Unsqueeze", ["keys", "axis1"], ["new"]),
        helper.make_node("Concat", ["past_key_0", "new"], ["present_key_0"], axis=2),
        helper.make_node("ReduceSum", ["present_key_0", "axis2"], ["sums"], keepdims=0),
        helper.make_node("MatMul", ["sums", "head"], ["logits"]),
    ]
    constants = {
        "table": TABLE,
        "head": HEAD,
        "one": np.array(1, np.int64),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("past_key_0", TensorProto.FLOAT, ["batch", 1, "past", DEPTH]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, VOCABULARY]),
            helper.make_tensor_value_info("present_key_0", TensorProto.FLOAT, ["batch", 1, "total", DEPTH]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return toy_session("growing").artifact
