"""Token states and sentence vectors are those of Transformers and sentence-transformers."""

import numpy as np
import pytest
import sentence_transformers
from palmtop.runtime.errors import RequestError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.pipelines import pipeline_class
from palmtop.runtime.pipelines.sentence_similarity import SentenceSimilarity

from ...support.torch_session import torch_pipeline
from .common import KINDS, LONG_TEXT, TEXTS, reference


@pytest.mark.parametrize("kind", KINDS)
def test_token_states_are_those_of_transformers(checkpoint, kind):
    folder = checkpoint(kind, "feature-extraction")
    ours, theirs = torch_pipeline(folder, "feature-extraction"), reference("feature-extraction", folder)
    for text, states in zip(TEXTS, ours(list(TEXTS)), strict=True):
        (expected,) = theirs(text)
        np.testing.assert_allclose(states, expected, atol=1e-5)
        np.testing.assert_allclose(ours(text), expected, atol=1e-5)


def test_pooling_leaves_padding_out(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", "feature-extraction"), "feature-extraction", sequence=Dim(size=48))
    states = pipeline(list(TEXTS))
    for pooling, expected in (
        ("mean", [s.mean(0) for s in states]),
        ("max", [s.max(0) for s in states]),
        ("cls", [s[0] for s in states]),
    ):
        vectors = pipeline(list(TEXTS), pooling=pooling)
        assert vectors.shape == (len(TEXTS), 32)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        assert pipeline(TEXTS[0], pooling=pooling).shape == (32,)


@pytest.mark.parametrize("call", [{"inputs": None}, {"inputs": [1]}, {"inputs": "a", "pooling": "sum"}])
def test_feature_requests_that_make_no_sense_are_refused(checkpoint, call):
    with pytest.raises(RequestError):
        torch_pipeline(checkpoint("bert", "feature-extraction"), "feature-extraction")(**call)


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_vectors_are_those_of_sentence_transformers(checkpoint, kind):
    folder = checkpoint(kind, "sentence-similarity")
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    texts = [*TEXTS, LONG_TEXT]
    vectors = torch_pipeline(folder, "sentence-similarity")(texts)
    np.testing.assert_allclose(vectors, theirs.encode(texts, batch_size=4), atol=1e-5)


def test_one_text_gives_one_vector_and_none_give_an_empty_array(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", "sentence-similarity"), "sentence-similarity")
    assert pipeline("a").shape == (32,)
    assert pipeline(["a"]).shape == (1, 32)
    assert pipeline([]).shape[0] == 0


def test_similarity_is_the_cosine_of_vectors(checkpoint):
    pipeline = torch_pipeline(checkpoint("bert", "sentence-similarity"), "sentence-similarity")
    vectors = pipeline(list(TEXTS[:3]))
    assert pipeline.similarity(TEXTS[0], TEXTS[0]) == pytest.approx(1.0, abs=1e-6)
    assert pipeline.similarity(TEXTS[0], TEXTS[1]) == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    matrix = pipeline.similarity(list(TEXTS[:3]), list(TEXTS[:2]))
    np.testing.assert_allclose(matrix, vectors @ vectors[:2].T, atol=1e-5)
    np.testing.assert_allclose(pipeline.similarity(vectors, TEXTS[0])[:, 0], matrix[:, 0], atol=1e-5)
    np.testing.assert_allclose(pipeline.similarity(vectors * 7, vectors), vectors @ vectors.T, atol=1e-5)


def test_prompts_of_the_checkpoint_go_before_the_text(checkpoint):
    folder = checkpoint("bert", "sentence-similarity")
    prompts = {"query": "find the ", "passage": "read the "}
    pipeline = torch_pipeline(
        folder, "sentence-similarity", preprocess={"prompts": prompts, "default_prompt": "passage"}
    )
    bare = torch_pipeline(folder, "sentence-similarity")
    np.testing.assert_array_equal(pipeline("book"), bare("read the book"))
    np.testing.assert_array_equal(pipeline("book", prompt_name="query"), bare("find the book"))
    np.testing.assert_array_equal(pipeline("book", prompt="a "), bare("a book"))
    np.testing.assert_array_equal(pipeline("book", prompt=""), bare("book"))
    with pytest.raises(RequestError, match="query, passage"):
        pipeline("book", prompt_name="title")


def test_an_encoder_that_gives_sentence_vectors_is_read_as_one(checkpoint):
    manifest = torch_pipeline(
        checkpoint("bert", "feature-extraction"), "feature-extraction", postprocess={"output": "last_hidden_state"}
    ).manifest
    assert pipeline_class(manifest).task == "feature-extraction"
    manifest.postprocess["output"] = "sentence_embedding"
    assert pipeline_class(manifest) is SentenceSimilarity
