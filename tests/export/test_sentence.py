"""The head of a sentence-transformers folder is what the sentence-transformers library computes from that folder."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from palmtop.export.sentence import embed, read_sentence_modules
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.tokenizer import carry_tokenizer
from palmtop.runtime.errors import DamagedError, UnsupportedError
from palmtop.runtime.preprocess import text_preparer
from palmtop.runtime.tokenizer import Tokenizer
from safetensors.torch import load_file, save_file

from .conftest import edit_json

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
WIDTH = 32
TEXTS = [
    "Wake me up at seven.",
    "ok",
    "",
    "Réveille-moi à sept heures, s'il te plaît; et puis allume la lumière du salon et mets de la musique.",
    "ΟΔΟΣ and İstanbul, [SEP] and GRÖSSE",
    "내일 아침 일곱 시에 깨워 주세요.",
    "The quick brown fox jumps over the lazy dog. " * 12,
]


@pytest.fixture
def folder(copy) -> Path:
    """A sentence-transformers folder (mean pooling, normalised, up to 64 tokens), to be altered."""
    return copy("bert", "sentence-similarity")


def pooling(folder: Path, modes: str | tuple[str, ...]) -> None:
    """Pool in another way, with no normalisation after it."""
    config = {"embedding_dimension": WIDTH, "pooling_mode": modes, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    edit_json(folder / "modules.json", lambda entries: entries[:2])


def append(folder: Path, module: sentence_transformers.sentence_transformer.modules.Module) -> None:
    """Put a module of the library at the end of the folder's list."""
    entries = json.loads((folder / "modules.json").read_text())
    name = type(module).__name__
    path = f"{len(entries)}_{name}"
    (folder / path).mkdir()
    module.save(str(folder / path))
    kind = f"sentence_transformers.models.{name}"
    entries.append({"idx": len(entries), "name": str(len(entries)), "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))


def library(folder: Path, texts: list[str] = TEXTS, **options) -> np.ndarray:
    """What sentence-transformers makes of some texts, in one batch."""
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, batch_size=len(texts), **options)


def ours(folder: Path, texts: list[str] = TEXTS) -> np.ndarray:
    """What palmtop's reference gives: the checkpoint's preparation, one padded batch, the module that is captured."""
    source = open_source(folder)
    cases = checkpoint_subject(source).lines(texts)
    rows = [row for case in cases for row in case.expected["sentence_embedding"]]
    return np.stack([row.values.reshape(row.shape) for row in rows])


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=3e-6)


COMBINATIONS = [*MODES, *itertools.combinations(MODES, 2), MODES, tuple(reversed(MODES))]


@pytest.mark.parametrize("modes", COMBINATIONS, ids=lambda m: m if isinstance(m, str) else "+".join(m))
@pytest.mark.parametrize("side", ["right", "left"])
def test_pooling_of_padded_batches(tmp_path, modes, side):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(5, 9, WIDTH, generator=generator) * 3
    mask = (torch.arange(9) < torch.tensor([[9], [1], [4], [8], [2]])).long()
    if side == "left":
        mask = mask.flip(1)
    (tmp_path / "1_Pooling").mkdir()
    entries = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    theirs = sentence_transformers.sentence_transformer.modules.Pooling(WIDTH, pooling_mode=modes)
    theirs.save(str(tmp_path / "1_Pooling"))
    modules = read_sentence_modules(tmp_path)
    expected = theirs({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(embed(modules.head, states, mask), expected, rtol=1e-6, atol=1e-6)
    assert modules.pooling == (modes if isinstance(modes, str) else "+".join(modes))
    assert modules.dimension == expected.shape[1]


def test_what_padding_holds_does_not_matter(tmp_path, folder):
    pooling(folder, MODES)
    head = read_sentence_modules(folder).head
    states, mask = torch.randn(2, 6, WIDTH), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    other = states.clone()
    other[0, 3:] = 1000.0
    torch.testing.assert_close(embed(head, other, mask), embed(head, states, mask))


@pytest.mark.parametrize("modes", ["mean", "cls", "lasttoken", MODES], ids=lambda m: m if isinstance(m, str) else "all")
def test_embeddings_of_a_folder(folder, modes):
    pooling(folder, modes)
    assert_same(ours(folder), library(folder))


def test_the_older_way_to_state_the_pooling(folder):
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **old}))
    assert read_sentence_modules(folder).pooling == "cls+max"
    assert_same(ours(folder), library(folder))


def test_normalised_embeddings_have_unit_length(folder):
    vectors = ours(folder)
    assert read_sentence_modules(folder).normalize
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert_same(vectors, library(folder))


ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "Sigmoid", "SiLU")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("width", "residual", "bias"), [(24, False, True), (24, True, False), (WIDTH, True, True)])
def test_dense(folder, activation, width, residual, bias):
    torch.manual_seed(0)
    function = getattr(torch.nn, activation)()
    modules = sentence_transformers.sentence_transformer.modules
    dense = modules.Dense(WIDTH, width, bias=bias, activation_function=function, use_residual=residual)
    append(folder, dense)
    head = read_sentence_modules(folder)
    vector = torch.randn(4, WIDTH)
    expected = dense({"sentence_embedding": vector})["sentence_embedding"]
    torch.testing.assert_close(list(head.head.children())[-1](vector), expected)
    assert head.dimension == width


def test_layer_norm_and_dense_and_normalize_in_the_folders_order(folder):
    torch.manual_seed(0)
    modules = sentence_transformers.sentence_transformer.modules
    norm = modules.LayerNorm(WIDTH)
    torch.nn.init.normal_(norm.norm.weight, 1.0, 0.5)
    torch.nn.init.normal_(norm.norm.bias)
    pooling(folder, ("mean", "max"))
    append(folder, modules.Dense(2 * WIDTH, WIDTH))
    append(folder, norm)
    append(folder, modules.Normalize())
    assert_same(ours(folder), library(folder))


def test_the_hash_of_the_weights_covers_the_head(folder):
    before = open_source(folder).weights_sha256()
    append(folder, sentence_transformers.sentence_transformer.modules.Dense(WIDTH, 8))
    dense = open_source(folder).weights_sha256()
    path = folder / "3_Dense" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    assert len({before, dense, open_source(folder).weights_sha256()}) == 3


# --- preparation of text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [8, 24])
def test_max_seq_length(folder, limit):
    edit_json(folder / "sentence_bert_config.json", lambda config: config.update(max_seq_length=limit))
    assert read_sentence_modules(folder).max_length == limit
    assert_same(ours(folder), library(folder))


def test_the_default_prompt_is_put_before_every_text(folder):
    prompts = {"query": "Query: ", "document": ""}
    edit_json(
        folder / "config_sentence_transformers.json",
        lambda config: config.update(prompts=prompts, default_prompt_name="query"),
    )
    with_prompt = library(folder)
    assert not np.allclose(with_prompt, library(folder, prompt=""), atol=1e-3)
    assert_same(ours(folder), with_prompt)
    assert checkpoint_subject(open_source(folder), None, None).preprocess["prompts"] == prompts


def test_named_prompts_are_not_used_unless_asked_for(folder):
    edit_json(folder / "config_sentence_transformers.json", lambda config: config.update(prompts={"query": "Query: "}))
    assert_same(ours(folder), library(folder))


@pytest.fixture
def cased(copy) -> Path:
    """A folder whose tokenizer keeps case, and whose settings ask for lower case."""
    folder = copy("bert", "sentence-similarity", tokenizer_options={"do_lower_case": False})
    edit_json(folder / "sentence_bert_config.json", lambda config: config.update(do_lower_case=True))
    return folder


def test_lower_casing_is_the_librarys(cased):
    assert_same(ours(cased), library(cased))
    edit_json(cased / "sentence_bert_config.json", lambda config: config.update(do_lower_case=False))
    assert_same(ours(cased), library(cased))


def test_a_bundle_lower_cases_as_the_library_does(cased, tmp_path):
    source = open_source(cased)
    preprocess = checkpoint_subject(source, None, None).preprocess
    spec = carry_tokenizer(source, tmp_path / "bundle", ("input_ids", "attention_mask"), 64)
    tokenizer = Tokenizer.open(tmp_path / "bundle" / spec.path, spec)
    prepare = text_preparer(preprocess)
    model = sentence_transformers.SentenceTransformer(str(cased), device="cpu", local_files_only=True)
    expected = model.tokenize(TEXTS)["input_ids"].numpy()
    np.testing.assert_array_equal(tokenizer([prepare(text) for text in TEXTS]).inputs["input_ids"], expected)


# --- what cannot be expressed, or is damaged ------------------------------------------------------------------------


def add(folder: Path, kind: str, path: str = "") -> None:
    edit_json(
        folder / "modules.json", lambda entries: entries.append({"idx": 9, "name": "9", "path": path, "type": kind})
    )


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.CNN", "my.package.Head", "sentence_transformers.models.LSTM"]
)
def test_an_unknown_module_is_refused_by_name(folder, kind):
    add(folder, kind)
    with pytest.raises(UnsupportedError) as caught:
        open_source(folder)
    assert caught.value.exit_code == 4
    assert kind in str(caught.value)
    assert "Remedy" in str(caught.value)


def test_a_folder_without_pooling_is_refused(folder):
    edit_json(folder / "modules.json", lambda entries: entries[:1])
    with pytest.raises(UnsupportedError, match="no Pooling"):
        open_source(folder)


def test_an_unknown_pooling_is_refused(folder):
    pooling(folder, ("mean", "median"))
    with pytest.raises(UnsupportedError, match="Unknown pooling median"):
        open_source(folder)


def test_a_pooling_that_leaves_the_prompt_out_is_refused(folder):
    edit_json(folder / "1_Pooling" / "config.json", lambda config: config.update(include_prompt=False))
    with pytest.raises(UnsupportedError, match="include_prompt"):
        open_source(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation_function": "my.module.Swish"}, "my.module.Swish"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"module_output_name": "other"}, "other"),
    ],
)
def test_a_dense_module_that_cannot_be_expressed(folder, change, says):
    append(folder, sentence_transformers.sentence_transformer.modules.Dense(WIDTH, 8))
    edit_json(folder / "3_Dense" / "config.json", lambda config: config.update(change))
    with pytest.raises(UnsupportedError, match=says):
        open_source(folder)


def test_another_task_does_not_mind_the_modules(copy):
    folder = copy("bert", "fill-mask")
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "my.package.Head"}]))
    with pytest.raises(UnsupportedError):
        open_source(folder)
    assert open_source(folder, task="fill-mask").sentence is None


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside"])
def test_modules_never_lead_out_of_the_folder(folder, path):
    (folder.parent / "outside").mkdir()
    add(folder, "sentence_transformers.models.Dense", path)
    with pytest.raises(DamagedError, match="outside the checkpoint"):
        open_source(folder)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"path": "x"}]', "[" * 100_000])
def test_a_garbage_list_of_modules_is_damage(folder, text):
    (folder / "modules.json").write_text(text)
    with pytest.raises(DamagedError, match=r"modules\.json"):
        open_source(folder)


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "3_Dense/config.json", "sentence_bert_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_garbage_settings_are_damage(folder, name, text):
    append(folder, sentence_transformers.sentence_transformer.modules.Dense(WIDTH, 8))
    (folder / name).write_text(text)
    with pytest.raises(DamagedError, match=Path(name).name):
        open_source(folder)


@pytest.mark.parametrize(
    "change", [lambda c: c.pop("in_features"), lambda c: c.update(out_features="8"), lambda c: c.update(in_features=7)]
)
def test_impossible_settings_of_a_dense_module_are_damage(folder, change):
    append(folder, sentence_transformers.sentence_transformer.modules.Dense(WIDTH, 8))
    edit_json(folder / "3_Dense" / "config.json", lambda config: (change(config), None)[1])
    with pytest.raises(DamagedError, match="3_Dense"):
        open_source(folder)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100], ids=["empty", "garbled"])
def test_damaged_weights_of_a_module_are_damage(folder, data):
    append(folder, sentence_transformers.sentence_transformer.modules.Dense(WIDTH, 8))
    (folder / "3_Dense" / "model.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="3_Dense"):
        open_source(folder)


def test_a_pickle_of_a_module_is_not_read(folder):
    append(folder, sentence_transformers.sentence_transformer.modules.Dense(WIDTH, 8))
    (folder / "3_Dense" / "model.safetensors").rename(folder / "3_Dense" / "pytorch_model.bin")
    with pytest.raises(DamagedError, match="does not read pickles"):
        open_source(folder)
