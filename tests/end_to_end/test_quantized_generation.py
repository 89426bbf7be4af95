"""A quantized language model whose head is its table: one plan for all formats, integers multiplied in each of them."""

from __future__ import annotations

import pytest
from palmtop.export import export_checkpoint
from palmtop.quantize.scheme import PRESETS, Plan
from palmtop.runtime import load
from palmtop.runtime.backends.executorch_file import describe
from palmtop.runtime.backends.onnx_file import operations

from ..support.generating import decoder_checkpoint

CONFIG = {"hidden_size": 128, "intermediate_size": 160, "tie_word_embeddings": True}
TABLE = "lm_head.weight"
TARGETS = ("onnx", "coreml", "executorch")


@pytest.fixture(scope="module", params=PRESETS)
def exported(request, tmp_path_factory):
    """A preset's name, and the bundle. Weights that learned nothing lose much to 4 bits."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = decoder_checkpoint(folder / "checkpoint", config=CONFIG)
    agreement = {"int8": 0.99, "int4": 0.8}[request.param]
    options = {"quantize": request.param, "min_agreement": agreement, "fallback": False}
    return request.param, export_checkpoint(checkpoint, folder / "out.bundle", max_length=96, **options)


def test_every_artifact_keeps_the_agreement(exported):
    _, result = exported
    assert {report.target: report.status for report in result.report.artifacts} == dict.fromkeys(TARGETS, "passed")


def test_the_table_is_planned_as_the_layer_that_it_is_too(exported):
    preset, result = exported
    assert Plan.read(result.path / "plan.json").weights[TABLE] == PRESETS[preset].layer


def test_no_step_unpacks_the_head_or_copies_a_cache(exported):
    _, result = exported
    files = {artifact.target: result.path / artifact.path for artifact in result.manifest.artifacts}
    assert not {"DequantizeLinear", "MatMul", "Gemm"} & set(operations(files["onnx"]))
    method = describe(files["executorch"])["methods"]["forward"]
    last = method["delegates"][-1]["operations"]
    assert (last["Convert"], last["FullyConnected"]) == (1, 1)
    assert sum(count for name, count in method["kernels"].items() if "embedding" in name) == 1
    assert method["kernels"]["aten::index_put_"] == 4


@pytest.mark.parametrize("target", TARGETS)
def test_a_text_leaves_nothing_behind_for_the_next(exported, target):
    pipeline = load(exported[1].path, target=target, threads=1)
    first, other = (pipeline(text, max_new_tokens=12)[0].text for text in ("Wake me up", "Turn off all the lights"))
    assert first != other
    assert pipeline("Wake me up", max_new_tokens=12)[0].text == first
