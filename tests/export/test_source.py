"""A checkpoint is opened without running anything in it, and one that cannot be exported is refused with the remedy."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.tasks import TASKS, infer_task
from palmtop.runtime.errors import DamagedError, RequestError, UnsupportedError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..coverage.shrink import default_config
from ..support.tiny import AUTO_CLASSES
from ..support.vocab import build_tokenizer
from .conftest import edit_json


def refused(error: type[Exception], *says: str, source, **options) -> str:
    """The message with which opening a source and loading its model is refused; it has all of `says` in it."""
    with pytest.raises(error) as caught:
        open_source(source, **options).load_model()
    message = str(caught.value)
    for words in says:
        assert words in message
    assert len(message) < 1200
    assert "Traceback" not in message
    return message


# --- what is not a checkpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["./nothing", "a/b/c", "~/nothing-here", "/nothing/at/all", " "])
def test_a_missing_folder_is_named(path):
    refused(RequestError, "No such folder", path.strip(), source=path)


def test_a_file_is_refused_with_what_a_checkpoint_is(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    refused(RequestError, str(path), "is a file", "folder with config.json", source=path)


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path):
    refused(RequestError, tmp_path.name, "no config.json", source=tmp_path)


def test_a_bundle_is_recognised(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    refused(RequestError, "palmtop bundle", "palmtop verify", source=tmp_path)


def test_a_folder_is_named_by_its_last_part_wherever_it_is_seen_from(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint())
    assert open_source(".").id == open_source(checkpoint()).id == "tiny-bert"


def test_a_revision_means_nothing_to_a_folder(checkpoint):
    refused(RequestError, "--revision", "folder", source=checkpoint(), revision="main")


# --- weights --------------------------------------------------------------------------------------------------------


def test_a_folder_without_weights(copy):
    folder = copy()
    (folder / "model.safetensors").unlink()
    refused(RequestError, folder.name, "no weights", "safetensors", source=folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "last.ckpt"])
def test_pickles_are_never_read(copy, name):
    folder = copy()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(DamagedError, name, "may run code", "save_pretrained", source=folder)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def garbled_header(data: bytes) -> bytes:
    return data[:8] + b"\xff" * 32 + data[40:]


def no_header(data: bytes) -> bytes:
    return b"\xff" * 64


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, garbled_header, no_header, empty])
def test_damaged_weights_are_damage(copy, damage):
    folder = copy()
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(DamagedError, folder.name, "weights", source=folder)


def test_weights_of_another_shape_are_named(copy):
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.0.attention.self.query.weight"] = torch.zeros(7, 5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(DamagedError, "wrong shape", "bert.encoder.layer.0.attention.self.query.weight", source=folder)


def test_a_missing_weight_inside_the_encoder_is_never_made_up(copy):
    folder = copy("bert", "feature-extraction")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(RequestError, "encoder.layer.1.output.dense.weight", source=folder)


def test_sharded_weights_are_read_and_hashed_as_a_list(checkpoint, copy):
    folder = copy()
    whole = open_source(checkpoint()).load_model()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    source = open_source(folder)
    for name, value in source.load_model().state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    listing = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in shards)
    assert source.weights_sha256() == hashlib.sha256(listing.encode()).hexdigest()


def test_a_missing_shard_is_damage(copy):
    folder = copy()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()
    refused(DamagedError, "cannot be loaded", source=folder)


def test_the_hash_is_that_of_the_one_file(checkpoint):
    expected = hashlib.sha256((checkpoint() / "model.safetensors").read_bytes()).hexdigest()
    assert open_source(checkpoint()).weights_sha256() == expected


def test_the_hash_covers_what_is_loaded_and_nothing_else(copy):
    folder = copy()
    before = open_source(folder).weights_sha256()
    # A folder of a training run keeps its checkpoints inside.
    (folder / "checkpoint-500").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-500" / "model.safetensors")
    assert open_source(folder).weights_sha256() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_load_as_fp32(copy, dtype):
    folder = copy()
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", lambda config: config.update(dtype=str(dtype).removeprefix("torch.")))
    model = open_source(folder).load_model()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(dict(model.named_parameters())[name], weights[name].float())


def test_the_reference_is_in_eval_mode_and_without_gradients(checkpoint):
    model = open_source(checkpoint()).load_model()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", '"bert"', "[]", "null", "[" * 100_000])
def test_a_garbage_config_is_damage(copy, text):
    folder = copy()
    (folder / "config.json").write_text(text)
    refused(DamagedError, "config.json", folder.name, source=folder)


def test_a_config_that_is_not_text_is_damage(copy):
    folder = copy()
    (folder / "config.json").write_bytes(b"\xff\xfe\x00\xd8")
    refused(DamagedError, "config.json", folder.name, source=folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"hidden_size": -4},
        {"num_hidden_layers": [2]},
        {"id2label": "none"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_with_impossible_values_is_damage(copy, change):
    folder = copy()
    edit_json(folder / "config.json", lambda config: config.update(change))
    refused(DamagedError, folder.name, source=folder)


@pytest.mark.parametrize("model_type", ["perceptrothron", None, ["bert"], 7])
def test_an_unknown_model_type_is_named(copy, model_type):
    folder = copy()
    edit_json(folder / "config.json", lambda config: config.update(model_type=model_type))
    said = "no model_type" if model_type is None else str(model_type)
    refused(RequestError, said, "transformers", source=folder)


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_an_unknown_task_lists_the_known_ones(checkpoint):
    refused(RequestError, "'text-clasification'", *TASKS, source=checkpoint(), task="text-clasification")


@pytest.mark.parametrize("task", [task for task in AUTO_CLASSES if task in TASKS])
def test_the_task_is_inferred_from_the_checkpoint(checkpoint, task):
    assert open_source(checkpoint("bert", task)).task.name == task


@pytest.mark.parametrize(
    ("model_type", "architecture", "task"),
    [
        ("vit", "ViTForImageClassification", "image-classification"),
        ("detr", "DetrForObjectDetection", "object-detection"),
        ("segformer", "SegformerForSemanticSegmentation", "image-segmentation"),
        ("dpt", "DPTForDepthEstimation", "depth-estimation"),
        ("swin", "SwinForMaskedImageModeling", "masked-im"),
        ("wav2vec2", "Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("whisper", "WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("wav2vec2", "Wav2Vec2ForSequenceClassification", "audio-classification"),
        ("wav2vec2", "Wav2Vec2ForAudioFrameClassification", "audio-frame-classification"),
        ("wav2vec2", "Wav2Vec2ForXVector", "audio-xvector"),
        ("gpt2", "GPT2LMHeadModel", "text-generation"),
        ("llama", "LlamaForCausalLM", "text-generation"),
        ("bart", "BartForConditionalGeneration", "text2text-generation"),
        ("marian", "MarianMTModel", "text2text-generation"),
        ("vision-encoder-decoder", "VisionEncoderDecoderModel", "image-to-text"),
    ],
)
def test_the_task_is_inferred_from_the_class(model_type, architecture, task):
    config = default_config(model_type)
    config.architectures = [architecture]
    assert infer_task(config, sentence=False).name == task


@pytest.mark.parametrize(
    ("alias", "task"),
    [("ner", "token-classification"), ("sentiment-analysis", "text-classification"), ("masked-lm", "fill-mask")],
)
def test_other_names_of_a_task(checkpoint, alias, task):
    assert open_source(checkpoint("bert", task), task=alias).task.name == task


def test_a_sentence_transformers_folder_makes_sentence_embeddings(checkpoint):
    source = open_source(checkpoint("bert", "sentence-similarity"))
    assert source.task.name == "feature-extraction"
    assert source.sentence is not None


@pytest.mark.parametrize("architectures", [None, [], ["BertForNextSentencePrediction"], ["Mystery"]])
def test_a_checkpoint_that_says_no_task_needs_one(copy, architectures):
    folder = copy()
    edit_json(folder / "config.json", lambda config: config.update(architectures=architectures))
    refused(RequestError, "Cannot tell the task", "--task", "text-classification", source=folder)
    assert open_source(folder, task="text-classification").load_model()


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ("feature-extraction", "text-classification"),
        ("text-classification", "question-answering"),
        ("text-classification", "fill-mask"),
        ("fill-mask", "token-classification"),
        ("fill-mask", "multiple-choice"),
    ],
)
def test_a_task_whose_head_has_no_weights_is_refused(checkpoint, saved, asked):
    folder = checkpoint("bert", saved)
    refused(RequestError, f"cannot do {asked}", "no weights for", "--task", source=folder, task=asked)


def test_a_task_that_the_architecture_does_not_have_is_refused(checkpoint):
    folder = checkpoint("t5", "feature-extraction", tokenizer_kind="unigram")
    refused(RequestError, "multiple-choice", "'t5'", "--task", source=folder, task="multiple-choice")


def test_features_of_any_checkpoint_need_no_head(checkpoint):
    model = open_source(checkpoint("bert", "fill-mask"), task="feature-extraction").load_model()
    assert type(model).__name__ == "BertModel"


# --- code in the checkpoint -----------------------------------------------------------------------------------------

# Leaves a mark when it is imported.
REMOTE = """
from pathlib import Path
Path(__file__).parent.joinpath("..").resolve()
import os
Path(os.environ["PALMTOP_TEST_MARK"]).write_text("ran")
from transformers import BertConfig, BertForSequenceClassification
class StrangeConfig(BertConfig):
    model_type = "strange"
class StrangeForSequenceClassification(BertForSequenceClassification):
    config_class = StrangeConfig
"""
AUTO_MAP = {
    "AutoConfig": "modeling_strange.StrangeConfig",
    "AutoModelForSequenceClassification": "modeling_strange.StrangeForSequenceClassification",
}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that the code in the checkpoint makes when it runs."""
    path = tmp_path / "ran"
    monkeypatch.setenv("PALMTOP_TEST_MARK", str(path))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return path


@pytest.fixture
def strange(copy, mark):
    """A checkpoint of a type that transformers does not know, with the code for it."""
    folder = copy()
    (folder / "modeling_strange.py").write_text(REMOTE)
    edit_json(folder / "config.json", lambda config: config.update(model_type="strange", auto_map=AUTO_MAP))
    return folder


def test_remote_code_is_not_run_unless_asked(strange, mark):
    refused(DamagedError, "own code", "modeling_strange.StrangeConfig", "--trust-remote-code", source=strange)
    assert not mark.exists()


def test_remote_code_runs_when_trusted(strange, mark):
    model = open_source(strange, trust_remote_code=True).load_model()
    assert type(model).__name__ == "StrangeForSequenceClassification"
    assert mark.exists()


def test_a_known_type_is_loaded_with_the_librarys_own_code(copy, mark):
    folder = copy()
    (folder / "modeling_strange.py").write_text(REMOTE)
    edit_json(folder / "config.json", lambda config: config.update(auto_map=AUTO_MAP))
    assert type(open_source(folder).load_model()).__name__ == "BertForSequenceClassification"
    assert not mark.exists()


def test_an_auto_map_of_another_form_runs_nothing(strange, mark):
    edit_json(strange / "config.json", lambda config: config.update(auto_map=["modeling_strange.StrangeConfig"]))
    refused(DamagedError, "--trust-remote-code", source=strange)
    assert not mark.exists()


def test_a_tokenizer_with_its_own_code_is_not_run_unless_asked(copy, mark):
    folder = copy()
    (folder / "tokenization_strange.py").write_text(REMOTE + "\nclass StrangeTokenizer: pass\n")
    own = {"AutoTokenizer": ["tokenization_strange.StrangeTokenizer", None]}
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(auto_map=own))
    assert type(open_source(folder).tokenizer).__name__ == "BertTokenizer"
    assert not mark.exists()


# --- the tokenizer --------------------------------------------------------------------------------------------------


def test_a_missing_tokenizer_is_named(copy):
    folder = copy()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    refused(RequestError, folder.name, "no tokenizer", "tokenizer.json", "vocab.txt", "Remedy", source=folder)


def test_the_tokenizer_of_another_model_is_noticed(copy):
    folder = copy()
    larger = build_tokenizer("bert", "wordpiece", merges=600)
    assert len(larger) > len(AutoTokenizer.from_pretrained(folder))
    larger.save_pretrained(folder)
    with pytest.raises(DamagedError, match="another model's"):
        checkpoint_subject(open_source(folder), None, None)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {}}'])
def test_a_garbage_tokenizer_is_damage(copy, text):
    folder = copy()
    (folder / "tokenizer.json").write_text(text)
    refused(DamagedError, "tokenizer", folder.name, source=folder)


def test_a_tokenizer_that_runs_python_is_refused(copy):
    folder = copy()
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    refused(UnsupportedError, "CanineTokenizer", "Python", "Remedy", source=folder)


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_card_gives_license_and_sections(checkpoint):
    card = open_source(checkpoint()).card
    assert card.license == "apache-2.0"
    assert card.metadata["language"] == ["en", "fr", "ko"]
    headings = [heading for heading, _ in card.sections]
    assert headings[:3] == ["# Tiny intents", "## Training data", "### Where they came from"]
    carried = dict(card.carried_sections())
    assert carried["## Training data"] == "Sentences that nobody said."
    assert carried["### Where they came from"] == "Made up for a test."
    assert carried["## Bias, risks and limitations"] == "It favours short sentences."
    assert "## How to use" not in carried


@pytest.mark.parametrize("card", [b"", b"\xff\xfe", b"---\n: : :\n---\n# Hello\n", b"---\n- a\n---\n", None])
def test_a_card_that_cannot_be_read_is_no_hindrance(copy, card):
    folder = copy()
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_bytes(card)
    assert open_source(folder).card.license is None


def test_headings_inside_code_are_no_sections(copy):
    folder = copy()
    (folder / "README.md").write_text("# Data\n```\n# not a heading\n```\nafter\n")
    assert open_source(folder).card.sections == (("# Data", "```\n# not a heading\n```\nafter"),)


def test_opening_changes_nothing_in_the_folder(checkpoint):
    folder = checkpoint()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    source = open_source(folder)
    source.tokenizer("one", truncation=True, max_length=4)
    assert np.isfinite(next(source.load_model().parameters()).numpy()).all()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert AutoTokenizer.from_pretrained(folder)("one")["input_ids"]
