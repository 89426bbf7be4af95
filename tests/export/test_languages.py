"""Languages that are tokens are found by trying them, and a bundle's runtime puts them where the tokenizer does."""

import pytest
import transformers
from palmtop.export.generation.languages import languages_of
from palmtop.runtime.errors import RequestError

from ..support.generating import encoder_decoder_checkpoint, generating_pipeline
from ..support.vocab import build_tokenizer

TEXTS = ("How are you?", "Réveille-moi", "")


@pytest.mark.parametrize(("kind", "code"), [("mbart", "fr_XX"), ("mbart50", "fr_XX"), ("nllb", "fra_Latn")])
def test_each_language_is_found_with_its_token(kind, code):
    tokenizer = transformers.NllbTokenizer() if kind == "nllb" else build_tokenizer(kind, "unigram")
    found = languages_of(tokenizer)
    assert found["source_language"] == tokenizer.src_lang in found["languages"]
    assert found["languages"][code] == tokenizer.convert_tokens_to_ids(code)
    assert len(found["languages"]) > 20
    assert all(tokenizer.convert_ids_to_tokens(token) == name for name, token in found["languages"].items())


def test_other_tokenizers_have_none():
    assert languages_of(build_tokenizer("t5", "unigram")) == {}


@pytest.mark.parametrize("kind", ["mbart", "mbart50"])
def test_the_runtime_reads_a_text_in_another_language_as_the_tokenizer_does(tmp_path, kind):
    tokenizer = build_tokenizer(kind, "unigram")
    pipeline = generating_pipeline(encoder_decoder_checkpoint(tmp_path, tokenizer=tokenizer), **languages_of(tokenizer))
    tokenizer.src_lang = "de_DE"
    for text in TEXTS:
        feeds = pipeline.feeds(text, src_lang="de_DE")
        assert feeds["input_ids"][0].tolist() == tokenizer(text)["input_ids"]
    with pytest.raises(RequestError, match="xx_XX"):
        pipeline("a", src_lang="xx_XX")
