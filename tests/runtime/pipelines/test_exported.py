"""The whole way once: a checkpoint, exported for ONNX Runtime, gives what Transformers gives for the checkpoint."""

import pytest
from palmtop.export.api import export_checkpoint
from palmtop.runtime import load

from .common import LONG_TEXT, TEXTS, assert_same, reference

TASK = "token-classification"


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    source = checkpoint("xlm-roberta", TASK)
    bundle = tmp_path_factory.mktemp("exported") / "ner.bundle"
    export_checkpoint(source, bundle, to=("onnx",))
    return source, bundle


def test_an_exported_bundle_gives_what_transformers_gives(folders):
    source, bundle = folders
    ours = load(bundle, threads=1)
    for strategy in ("none", "simple", "average"):
        theirs = reference(TASK, source, aggregation_strategy=strategy)
        for text, result in zip(TEXTS, ours(list(TEXTS), aggregation_strategy=strategy), strict=True):
            assert_same(result, theirs(text))
    windows = reference(TASK, source, aggregation_strategy="simple", stride=8)
    assert_same(ours(LONG_TEXT, aggregation_strategy="simple", stride=8), windows(LONG_TEXT))
