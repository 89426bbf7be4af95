"""The forms that ONNX Runtime runs fastest are written where they fit, nowhere else, and change no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx as onnx_library
import pytest
import torch
from palmtop.export.capture import capture, trace_module
from palmtop.export.targets import Options
from palmtop.export.targets.onnx import lower, plan
from palmtop.runtime.backends import get_backend
from palmtop.runtime.manifest import Dim, TensorSpec
from palmtop.runtime.session import Session
from palmtop.runtime.verify import verify_artifact
from torch.nn.functional import scaled_dot_product_attention

from .executorch_models import BATCH, IDENTITY, capture_checkpoint, sequence, size

_HEADS, _WIDTH = 2, 16


class Attend(torch.nn.Module):
    """Heads split off and joined as in BERT, around what a test puts in between; then a residual and a norm."""

    def __init__(self, attend: Callable[..., torch.Tensor], split: Callable | None = None):
        super().__init__()
        self.attend, self.split = attend, split or (lambda x: x.unflatten(-1, (_HEADS, -1)).transpose(1, 2))
        self.query, self.key, self.value = (torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.norm = torch.nn.LayerNorm(_WIDTH)

    def forward(self, x: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query(x), self.key(other), self.value(other)
        mixed = self.attend(self.split(query), self.split(key), self.split(value), mask)
        return self.norm(x + mixed.transpose(1, 2).reshape(*x.shape[:2], _WIDTH))


def lowered(module: torch.nn.Module, folder: Path, mask: tuple[Dim, ...], **options):
    """A module of `x`, `other` (keys and values, as long as it likes) and `mask`, as an ONNX file, and its artifact."""
    torch.manual_seed(0)
    module = module.eval().requires_grad_(False)
    batch, length, keys = BATCH, sequence(40), Dim(symbol="keys", min=1, max=50)
    dims = {"x": (batch, length, size(_WIDTH)), "other": (batch, keys, size(_WIDTH)), "mask": mask}
    sizes = {"batch": 3, "sequence": 7, "keys": 5}
    example = {name: torch.randn([d.size or sizes[d.symbol] for d in each]) for name, each in dims.items()}
    specs = [TensorSpec(name, "float32", each) for name, each in dims.items()]
    captured = capture(module, example, specs, ["output"], trace=trace_module)
    artifact = plan(captured, Options(**options))
    lower(captured, artifact, IDENTITY, folder / artifact.path)
    return artifact


def operations(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx_library.load(path, load_external_data=False).graph.node)


KEYS = Dim(symbol="keys", min=1, max=50)
LENGTH = sequence(40)
MASKS = {
    "for each key": (BATCH, size(1), size(1), KEYS),
    "for each query": (BATCH, size(1), LENGTH, KEYS),
    "for each head, all rows alike": (size(1), size(_HEADS), LENGTH, KEYS),
    "one for all": (size(1), size(1), size(1), KEYS),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_is_one_operation_whatever_its_mask_and_lengths(tmp_path, mask):
    module = Attend(lambda q, k, v, m: scaled_dot_product_attention(q, k, v, m, scale=0.3))
    artifact = lowered(module, tmp_path, mask)
    counts = operations(tmp_path / artifact.path)
    assert counts["Attention"] == 1
    assert not counts["Softmax"]
    assert not counts["Transpose"]
    session = Session.open(tmp_path, artifact, IDENTITY, threads=1)
    for sizes in ({"batch": 1, "sequence": 1, "keys": 1}, {"batch": 2, "sequence": 9, "keys": 33}):
        x, other = (torch.randn(sizes["batch"], sizes[axis], _WIDTH) for axis in ("sequence", "keys"))
        bias = torch.randn([d.size or sizes[d.symbol] for d in mask]) * 3
        expected = module(x, other, bias)
        actual = session.run({"x": x.numpy(), "other": other.numpy(), "mask": bias.numpy()})["output"]
        np.testing.assert_allclose(actual, expected, atol=3e-6)


def in_products(query, key, value, mask):
    return ((query @ key.transpose(-1, -2)) / 3.0 + mask + mask.sin()).softmax(dim=-1) @ value


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_in_products_is_one_operation_too(tmp_path, mask):
    module = Attend(in_products)
    artifact = lowered(module, tmp_path, mask)
    assert operations(tmp_path / artifact.path)["Attention"] == 1
    x, other = torch.randn(2, 9, _WIDTH), torch.randn(2, 33, _WIDTH)
    bias = torch.randn([d.size or {"batch": 2, "sequence": 9, "keys": 33}[d.symbol] for d in mask])
    actual = Session.open(tmp_path, artifact, IDENTITY, threads=1).run(
        {"x": x.numpy(), "other": other.numpy(), "mask": bias.numpy()}
    )
    np.testing.assert_allclose(actual["output"], module(x, other, bias), atol=3e-6)


def scaled_after_the_mask(query, key, value, mask):
    return ((query @ key.transpose(-1, -2) + mask) / 3.0).softmax(dim=-1) @ value


def along_queries(query, key, value, mask):
    return (query @ key.transpose(-1, -2) + mask).softmax(dim=-2) @ value


def rotated(query, key, value, mask):
    """Something between the heads and attention, as rotary positions are."""
    return scaled_dot_product_attention(query.flip(-1), key * mask, value)


def causal(query, key, value, mask):
    return scaled_dot_product_attention(query, key, value + mask, is_causal=True)


def flat_mask(query, key, value, mask):
    return scaled_dot_product_attention(query, key, value, mask[0, 0])


def seen_elsewhere(query, key, value, mask):
    mixed = scaled_dot_product_attention(query, key, value, mask)
    return mixed + mixed.mean(dim=-1, keepdim=True)


def depth_first(x):
    """Heads whose channels lie apart."""
    return x.unflatten(-1, (-1, _HEADS)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("attend", "mask", "split"),
    [
        (rotated, (size(1), size(1), size(1), size(1)), None),
        (causal, (size(1), size(1), size(1), size(1)), None),
        (flat_mask, (size(1), size(1), LENGTH, KEYS), None),
        (seen_elsewhere, (BATCH, size(1), size(1), KEYS), None),
        (scaled_after_the_mask, (BATCH, size(1), size(1), KEYS), None),
        (along_queries, (BATCH, size(1), size(1), KEYS), None),
        (lambda q, k, v, m: scaled_dot_product_attention(q, k, v, m), (BATCH, size(1), size(1), KEYS), depth_first),
    ],
    ids=["rotated", "causal", "mask of another rank", "read twice", "scaled later", "over queries", "channels apart"],
)
def test_other_attention_stays_as_it_is(tmp_path, attend, mask, split):
    module = Attend(attend, split)
    artifact = lowered(module, tmp_path, mask)
    assert not operations(tmp_path / artifact.path)["Attention"]
    x, other = torch.randn(2, 9, _WIDTH), torch.randn(2, 33, _WIDTH)
    bias = torch.randn([d.size or {"batch": 2, "sequence": 9, "keys": 33}[d.symbol] for d in mask])
    actual = Session.open(tmp_path, artifact, IDENTITY, threads=1).run(
        {"x": x.numpy(), "other": other.numpy(), "mask": bias.numpy()}
    )
    np.testing.assert_allclose(actual["output"], module(x, other, bias), atol=3e-6)


def test_fp16_is_left_as_it_is(tmp_path):
    module = Attend(scaled_dot_product_attention)
    artifact = lowered(module, tmp_path, MASKS["for each key"], precision="fp16")
    assert not operations(tmp_path / artifact.path)["Attention"]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "albert", "electra", "mpnet"])
def test_every_layer_of_an_encoder_is_fused_and_no_value_moves_beyond_its_noise(checkpoint, tmp_path, model_type):
    subject, program = capture_checkpoint(checkpoint(model_type, "feature-extraction"), "feature-extraction")
    artifact = plan(program, Options())
    path = tmp_path / artifact.path
    lower(program, artifact, IDENTITY, path)
    assert not operations(path)["Softmax"]
    nodes = onnx_library.load(path).graph.node
    masks = [node.input[3] for node in nodes if node.op_type == "Attention"]
    assert len(masks) == 2
    assert len(set(masks)) == 1  # made once for all layers
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
    assert all(measure.cosine > 0.99999 for measure in report.measures)


def test_onnx_runtime_keeps_norms_apart_from_the_sums_before_them(checkpoint, tmp_path):
    import onnxruntime

    _, program = capture_checkpoint(checkpoint("bert", "feature-extraction"), "feature-extraction")
    artifact = plan(program, Options())
    lower(program, artifact, IDENTITY, tmp_path / artifact.path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / artifact.path), options, providers=["CPUExecutionProvider"])
    counts = operations(tmp_path / "optimized.onnx")
    assert counts["LayerNormalization"] == 5
    assert not counts["SkipLayerNormalization"]


def test_fused_operations_keep_the_module_that_they_come_from(checkpoint, tmp_path):
    subject, program = capture_checkpoint(checkpoint("bert", "feature-extraction"), "feature-extraction")
    artifact = plan(program, Options())
    lower(program, artifact, IDENTITY, tmp_path / artifact.path)
    found = {}
    trace = get_backend("onnx").trace
    assert trace is not None
    feeds = {spec.name: subject.example[spec.name].numpy() for spec in artifact.inputs}
    trace(tmp_path / artifact.path, artifact, feeds, lambda traced: found.setdefault(traced.operation, traced))
    assert found["Attention"].module == "encoder.layer.0.attention.self"
    assert found["Attention"].value.shape == (*feeds["input_ids"].shape, 32)
    assert found["Reshape"].module == "embeddings"


class Pooled(torch.nn.Module):
    """Zeros around what is negative, and the greatest of each window (BiT)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(torch.nn.functional.pad(-x.exp(), (1, 1, 1, 1)), 3, 2)


def test_the_greatest_of_a_window_counts_the_zeros_around_it(tmp_path):
    module = Pooled().eval()
    spec = TensorSpec("x", "float32", (BATCH, size(3), size(9), size(9)))
    program = capture(module, {"x": torch.randn(2, 3, 9, 9)}, [spec], ["y"], trace=trace_module)
    artifact = plan(program, Options())
    lower(program, artifact, IDENTITY, tmp_path / artifact.path)
    x = torch.randn(1, 3, 9, 9)

    found = Session.open(tmp_path, artifact, IDENTITY, threads=1).run({"x": x.numpy()})["y"]

    torch.testing.assert_close(torch.from_numpy(found), module(x))
