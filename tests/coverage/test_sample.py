"""A sample of the coverage table, a pair or two of each kind of model; `make coverage` runs all of it."""

import pytest
from palmtop.export import export_checkpoint

from tests.coverage.case import apart
from tests.coverage.checkpoints import make_checkpoint
from tests.coverage.report import OTHERS, short_reason, write_report

# One of each way of making a model: encoder, relative positions, decoder with rotary positions, sparse attention,
# experts, encoder-decoder, convolutions, windows, sound. The format rotates, so that each meets several.
SAMPLE = [
    ("roberta", "question-answering", "onnx"),
    ("deberta-v2", "fill-mask", "coreml"),
    ("qwen3", "feature-extraction", "executorch"),
    ("longformer", "feature-extraction", "onnx"),
    ("qwen3_moe", "token-classification", "coreml"),
    ("bart", "feature-extraction", "coreml"),
    ("convnext", "image-classification", "executorch"),
    ("segformer", "image-classification", "onnx"),
    ("wav2vec2", "audio-classification", "onnx"),
    ("ernie", "text-classification", "executorch"),  # not in the table
]


@pytest.mark.parametrize(("model_type", "task", "target"), SAMPLE)
def test_pair_is_exported_and_verified(tmp_path, model_type, task, target):
    made = make_checkpoint(tmp_path / "checkpoint", model_type, task)

    result = export_checkpoint(made.folder, tmp_path / "out.bundle", task=task, to=[target])

    assert [entry.status for entry in result.report.artifacts] == ["passed"]


def test_the_failure_of_one_format_is_not_the_others():
    asked = []

    def export(reason: str):
        def called(targets):
            asked.append(list(targets))
            failed = {"status": "refused", "reason": reason}
            return {target: failed if "coreml" in targets else {"status": "verified"} for target in targets}

        return called

    statuses = {"onnx": "verified", "coreml": "refused", "executorch": "verified"}
    for reason in (
        "coremltools cannot convert aten.odd to Core ML",
        "coreml/model.mlpackage: far off",
        "it has no cache",
    ):
        found = apart(export(reason), list(statuses))
        assert {target: entry["status"] for target, entry in found.items()} == statuses

    assert asked[:2] == [list(statuses), ["onnx", "executorch"]]
    assert asked[-3:] == [["onnx"], ["coreml"], ["executorch"]]


def test_table_counts_what_is_verified_and_gives_reasons_for_the_rest(tmp_path):
    refused = {"status": "refused", "exit_code": 4, "reason": "1 operations cannot be expressed:\n  coreml: aten.odd"}
    where = "/somewhere/palmtop-coverage-ab_1/.out.bundle.7.partial/executorch/model.pte cannot be loaded"
    broken = {"status": "error", "exit_code": 3, "reason": where}
    results = [
        {"model_type": "bert", "task": "fill-mask", "targets": {"onnx": {"status": "verified"}, "coreml": refused}},
        {"model_type": "vit", "task": "masked-im", "targets": {"onnx": {"status": "verified"}, "executorch": broken}},
    ]

    write_report(results, 4, tmp_path)

    page = (tmp_path / "coverage.md").read_text(encoding="utf-8")
    assert "2 of 4 (50.0%)" in page
    assert short_reason(refused) == "1 operations cannot be expressed: coreml: aten.odd"
    assert f"bert (fill-mask): refused: {short_reason(refused)}" in page
    assert "| vit | masked-im | ✓ | not run | error |" in page
    assert "error: executorch/model.pte cannot be loaded" in page
    write_report(results[:1], 4, tmp_path, OTHERS)
    assert "| what was run | **1 of 1 (100.0%)** | **0 of 1 (0.0%)** |" in (tmp_path / "coverage-others.md").read_text()
    assert "palmtop-coverage-" not in page + (tmp_path / "coverage.json").read_text(encoding="utf-8")
