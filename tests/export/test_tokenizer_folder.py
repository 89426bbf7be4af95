"""The tokenizer folder of a bundle gives what transformers gives, to every kind of reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from palmtop.export.source import open_source
from palmtop.export.texts import LONG, PAIRS, PROBES, SENTENCES
from palmtop.export.tokenization import readers
from palmtop.export.tokenization.legacy import write_sentencepiece, write_vocab_json
from palmtop.export.tokenizer import carry_tokenizer, check_tokenizer, prove_tokenizer, tokenizer_inputs
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.tokenizer_golden import read_tokenizer_golden
from palmtop.runtime.tokenizer_spec import read_tokenizer_spec
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from ..support.spec_check import differences
from ..support.spec_reader import SpecTokenizer
from ..support.vocab import _learn, _words
from ..support.vocabularies import sentencepiece_bpe, t5, unigram_bytes
from .conftest import edit_json

TEXTS = [*SENTENCES, *(text for _, text in PROBES), LONG]
# Model type: its kind of tokenizer, and the class its bundle names.
KINDS = {
    "bert": ("wordpiece", "BertTokenizer"),
    "roberta": ("byte-level-bpe", "RobertaTokenizer"),
    "xlm-roberta": ("unigram", "XLMRobertaTokenizer"),
    "deberta-v2": ("unigram", "DebertaV2Tokenizer"),
    "albert": ("unigram", "AlbertTokenizer"),
    "modernbert": ("byte-level-bpe", "PreTrainedTokenizerFast"),
    "metaspace": ("bpe", "LlamaTokenizer"),
}


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """BPE as Llama and Gemma have it: spaces are `▁`, what is not in the vocabulary becomes bytes."""
    probe = Tokenizer(models.BPE())
    probe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    vocab, pairs = _learn(_words(probe), 200)
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), *vocab]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, pairs, byte_fallback=True, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session", params=KINDS)
def carried(request, checkpoint, tmp_path_factory):
    """A source, the tokenizer folder that was made of it, what the manifest says, and the name of its kind."""
    if request.param == "metaspace":
        folder = Path(shutil.copytree(checkpoint(), tmp_path_factory.mktemp("metaspace") / "checkpoint"))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        metaspace_bpe().save_pretrained(folder)
    else:
        folder = checkpoint(request.param, "feature-extraction")
    source = open_source(folder, task="text-classification" if request.param == "metaspace" else None)
    # What a call before the export leaves behind in the tokenizer must not reach the bundle.
    source.tokenizer(["a b c d e f g h", "a"], truncation=True, max_length=4, padding="max_length")
    root = tmp_path_factory.mktemp("carried")
    inputs = tokenizer_inputs(source, {"input_ids", "attention_mask", "token_type_ids"})
    spec = carry_tokenizer(source, root, inputs, 48)
    prove_tokenizer(source, root / spec.path, spec)
    return source, root / spec.path, spec, request.param


# What `prove_tokenizer` adds to the folder.
PROOF = ("golden.jsonl", "compatibility.json")


def files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_encodings(tokenizer, source) -> None:
    """Ids, offsets and types of single texts and pairs are what the checkpoint's tokenizer gives."""
    for first, second in [*((text, None) for text in TEXTS), *PAIRS]:
        expected = source.tokenizer(first, second, return_offsets_mapping=True, return_token_type_ids=True)
        actual = tokenizer.encode(first, second)
        assert actual.ids == expected["input_ids"], first
        assert actual.offsets == [tuple(pair) for pair in expected["offset_mapping"]], first
        assert actual.type_ids == expected["token_type_ids"], first


def test_ids_and_offsets_are_those_of_transformers(carried):
    source, folder, _, _ = carried
    assert_same_encodings(Tokenizer.from_file(str(folder / "tokenizer.json")), source)
    check_tokenizer(source, folder, tuple(TEXTS))


# Read as the class that its bundle names, transformers 5 rebuilds these: what their checkpoints name is generic.
GENERIC = ("modernbert", "metaspace")


def test_transformers_reads_the_folder_as_the_same_tokenizer(carried):
    source, folder, spec, name = carried
    again = (PreTrainedTokenizerFast if name in GENERIC else AutoTokenizer).from_pretrained(folder)
    if name not in GENERIC:
        assert type(again).__name__.removesuffix("Fast") == spec.tokenizer_class
    for text in TEXTS:
        expected = source.tokenizer(text, truncation=True, max_length=48)["input_ids"]
        assert again(text, truncation=True)["input_ids"] == expected


@pytest.mark.parametrize("settings", [{"lowercase": False}, {"lowercase": True, "strip_accents": False}])
def test_a_generic_wordpiece_tokenizer_says_how_it_normalises(copy, tmp_path, settings):
    folder = copy("bert", "feature-extraction")
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    backend.normalizer = normalizers.BertNormalizer(**settings)
    specials = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "mask", "unk")}
    (folder / "tokenizer_config.json").unlink()
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(folder)
    source = open_source(folder)
    carried = carry(source, tmp_path / "root")
    again = AutoTokenizer.from_pretrained(carried)
    assert type(again) is BertTokenizer
    for text in SENTENCES:
        assert again(text)["input_ids"] == source.tokenizer(text)["input_ids"]


def test_kind_and_class_are_concrete(carried):
    _, folder, spec, name = carried
    assert (spec.kind, spec.tokenizer_class) == KINDS[name]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == spec.tokenizer_class


def test_the_manifest_says_what_the_tokenizer_does(carried):
    source, _, spec, _ = carried
    tokenizer = source.tokenizer
    assert spec.max_length == 48
    assert (spec.padding_side, spec.truncation_side) == (tokenizer.padding_side, tokenizer.truncation_side)
    assert spec.input_pad["input_ids"] == spec.special_ids["pad"] == tokenizer.pad_token_id
    assert spec.input_pad["attention_mask"] == 0
    for role, token in spec.special_tokens.items():
        assert spec.special_ids[role] == tokenizer.convert_tokens_to_ids(token)
        assert token == getattr(tokenizer, f"{role}_token")
    padded = tokenizer("a", padding="max_length", max_length=9)
    assert all(padded[name][-1] == spec.input_pad[name] for name in spec.inputs)


def test_no_state_of_an_earlier_call_is_carried(carried):
    _, folder, _, _ = carried
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert data["truncation"] is None
    assert data["padding"] is None


def test_no_path_of_this_machine_is_carried(carried):
    source, folder, _, _ = carried
    for path in files_of(folder).values():
        data = path.read_bytes()
        for place in (source.folder, folder, Path.home()):
            assert str(place).encode() not in data, path.name
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert not {"name_or_path", "tokenizer_file", "vocab_file", "is_local"} & set(config)


def test_the_same_tokenizer_gives_the_same_bytes(carried, tmp_path):
    source, folder, spec, _ = carried
    carry_tokenizer(open_source(source.folder, task=source.task.name), tmp_path, spec.inputs, 48)
    files = {name: path.read_bytes() for name, path in files_of(folder).items()}
    again = {name: path.read_bytes() for name, path in files_of(tmp_path / "tokenizer").items()}
    assert {name: data for name, data in files.items() if name not in PROOF} == again


# --- the specification, the vectors and the table of readers -------------------------------------------------------


def test_the_plain_reader_gives_the_vectors_of_the_folder(carried):
    _, folder, _, _ = carried
    spec = read_tokenizer_spec(folder / "tokenizer_spec.json")
    cases = read_tokenizer_golden(folder / "golden.jsonl")
    assert len(cases) > 60
    for case in cases:
        side = case.padding["side"] if case.padding else spec["padding"]["side"]
        reader = SpecTokenizer({**spec, "padding": {**spec["padding"], "side": side}})
        assert differences(reader, [case]) == []


def test_the_specification_says_what_the_manifest_says(carried):
    _, folder, spec, _ = carried
    data = read_tokenizer_spec(folder / "tokenizer_spec.json")
    assert tuple(data["inputs"]) == spec.inputs
    assert data["truncation"] == {"max_length": 48, "side": spec.truncation_side, "strategy": "longest_first"}
    assert (data["padding"]["side"], data["padding"]["id"]) == (spec.padding_side, spec.input_pad["input_ids"])


def test_the_vectors_hold_every_probe_that_separates_readers(carried):
    _, folder, _, _ = carried
    cases = read_tokenizer_golden(folder / "golden.jsonl")
    texts = "".join(case.text for case in cases)
    for piece in (
        "Bonjour, comment vas-tu?",
        "e\u0301",
        "\u1112\u1161\u11ab",
        "ﾃｽﾄ",
        "👩‍👩‍👧‍👦",
        "\r\n",
        "\ue000",
        "\ufffd",
        "क्या",
        "ขอบ",
    ):
        assert piece in texts
    assert {case.truncation["strategy"] for case in cases if case.truncation} == {
        "longest_first",
        "only_first",
        "only_second",
    }
    assert {case.padding["side"] for case in cases if case.padding} == {"left", "right"}
    assert {case.truncation["side"] for case in cases if case.truncation} == {"left", "right"}
    emoji = next(case for case in cases if case.text.startswith("👩"))
    assert max(end for _, end in emoji.offsets_utf16) > max(end for _, end in emoji.offsets)


def test_a_wrong_file_fails_the_proof(carried, tmp_path):
    source, folder, spec, _ = carried
    copied = Path(shutil.copytree(folder, tmp_path / "tokenizer"))
    edit_json(copied / "tokenizer.json", lambda data: data.update(post_processor=None))
    with pytest.raises(UnsupportedError, match="cannot be carried") as caught:
        prove_tokenizer(source, copied, spec)
    assert "Remedy" in str(caught.value)


def table_of(folder: Path) -> dict[str, dict]:
    return {row["reader"]: row for row in json.loads((folder / "compatibility.json").read_text())["readers"]}


def test_the_table_of_readers_is_what_they_do(carried):
    _, folder, _, name = carried
    table = table_of(folder)
    assert table["tokenizers"]["result"] == "passes"
    executorch = table["pytorch-tokenizers"]
    assert executorch["version"]
    if name == "roberta":
        assert (executorch["result"], executorch["special_tokens"]) == ("passes", False)
    elif name == "modernbert":
        assert executorch["result"] == "differs"
        assert executorch["passed"] < executorch["vectors"]
        assert "first with" in executorch["why"]
    else:
        assert executorch["result"] == "refuses"
    if name == "bert":
        assert executorch["why"].endswith("Unsupported Normalizer type: BertNormalizer")
    assert str(folder) not in json.dumps(table)


def test_a_reader_that_aborts_is_said_to(carried, tmp_path, monkeypatch):
    _, folder, _, _ = carried
    child = tmp_path / "child.py"
    child.write_text("import os\nos.abort()\n")
    monkeypatch.setattr(readers, "_CHILD", child)
    rows = readers.compatibility(folder, read_tokenizer_golden(folder / "golden.jsonl"), {"x": [1]})
    others = {row["result"] for row in rows if row["reader"] not in ("tokenizers", readers.OWN_READER)}
    assert others == {"aborts"}


def test_executorch_gets_special_tokens_as_a_template(carried):
    _, folder, _, name = carried
    variant = folder / "executorch" / "tokenizer.json"
    assert variant.is_file() == (name == "roberta")
    if variant.is_file():
        ours, theirs = Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.from_file(str(variant))
        for first, second in [*((text, None) for text in TEXTS), *PAIRS]:
            expected, found = ours.encode(first, second), theirs.encode(first, second)
            assert (found.ids, found.type_ids) == (expected.ids, expected.type_ids)


def test_chat_templates_are_files(copy, tmp_path):
    folder = copy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    carried = carry(open_source(folder), tmp_path / "root")
    assert (carried / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (carried / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


# --- readers from before tokenizer.json -----------------------------------------------------------------------------


def carry(source, root: Path) -> Path:
    inputs = tokenizer_inputs(source, {"input_ids", "attention_mask", "token_type_ids"})
    return root / carry_tokenizer(source, root, inputs, 48).path


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("reader", [BertTokenizer, BertTokenizerLegacy])
def test_vocab_txt_is_what_wordpiece_readers_take(checkpoint, tmp_path, lower, reader):
    source = open_source(checkpoint("bert", "feature-extraction", tokenizer_options={"do_lower_case": lower}))
    folder = carry(source, tmp_path)
    (folder / "tokenizer.json").unlink()
    alone = reader.from_pretrained(folder)
    for text in SENTENCES:
        assert alone(text)["input_ids"] == source.tokenizer(text)["input_ids"]


@pytest.mark.parametrize(("model_type", "reader"), [("roberta", RobertaTokenizer), ("gpt2", GPT2Tokenizer)])
def test_vocab_json_and_merges_are_what_bpe_readers_take(checkpoint, tmp_path, model_type, reader):
    source = open_source(checkpoint("roberta", "feature-extraction"))
    folder = carry(source, tmp_path)
    (folder / "tokenizer.json").unlink()
    alone = reader.from_pretrained(folder)
    for text in SENTENCES:
        ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert alone(text, add_special_tokens=False)["input_ids"] == ids


def test_a_sentencepiece_model_in_the_checkpoint_is_carried(copy, tmp_path):
    folder = copy("xlm-roberta", "feature-extraction")
    (folder / "sentencepiece.bpe.model").write_bytes(b"\x0a\x00model")
    carried = carry(open_source(folder), tmp_path / "root")
    assert (carried / "sentencepiece.bpe.model").read_bytes() == b"\x0a\x00model"


def bare(backend: Tokenizer) -> dict[str, list[int]]:
    return {text: backend.encode(text, add_special_tokens=False).ids for text in SENTENCES}


@pytest.mark.parametrize(("maker", "kind"), [(t5, 1), (unigram_bytes, 1), (sentencepiece_bpe, 2)])
def test_a_sentencepiece_model_is_rebuilt(tmp_path, maker, kind):
    backend = maker()
    write_sentencepiece(tmp_path, json.loads(backend.to_str()), bare(backend))
    reader = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in SENTENCES:
        assert reader.encode(text) == backend.encode(text, add_special_tokens=False).ids
    assert [reader.id_to_piece(i) for i in range(reader.vocab_size())] == [
        backend.id_to_token(i) for i in range(reader.vocab_size())
    ]
    assert reader.unk_id() == backend.token_to_id("<unk>")
    proto = sentencepiece_model_pb2.ModelProto.FromString((tmp_path / "spiece.model").read_bytes())
    assert proto.trainer_spec.model_type == kind


def test_no_sentencepiece_model_is_made_that_reads_otherwise(tmp_path):
    backend = t5()
    backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.Replace("e", "a")])
    write_sentencepiece(tmp_path, json.loads(backend.to_str()), bare(backend))
    assert not list(tmp_path.iterdir())


def test_merges_with_spaces_have_no_merges_txt(tmp_path):
    model = {"vocab": {"a": 0, " ": 1, "a ": 2}, "merges": [["a", " "]]}
    write_vocab_json(tmp_path, model, header=True)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_with_a_line_end_in_it_has_no_vocab_txt(copy, tmp_path):
    folder = copy()
    edit_json(
        folder / "tokenizer.json", lambda data: data["model"]["vocab"].update({"a\nb": len(data["model"]["vocab"])})
    )
    source = open_source(folder)
    assert not (carry(source, tmp_path / "root") / "vocab.txt").exists()


def test_a_vocabulary_with_holes_has_no_vocab_txt(copy, tmp_path):
    folder = copy()

    def move(data) -> None:
        vocab = data["model"]["vocab"]
        last = max(vocab, key=vocab.get)
        vocab[last] += 7

    edit_json(folder / "tokenizer.json", move)
    assert not (carry(open_source(folder), tmp_path / "root") / "vocab.txt").exists()


def test_tokens_that_were_added_stand_in_vocab_txt(copy, tmp_path):
    folder = copy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<user>", "<name>"])
    tokenizer.save_pretrained(folder)
    lines = (carry(open_source(folder), tmp_path / "root") / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines.index("<name>") == tokenizer.convert_tokens_to_ids("<name>")


# --- what cannot be carried -----------------------------------------------------------------------------------------


def test_a_tokenizer_that_works_in_python_is_refused(checkpoint, tmp_path):
    source = open_source(checkpoint())
    folder = carry(source, tmp_path)
    cls = type(source.tokenizer)

    class Reversing(cls):
        def _encode_plus(self, text, *arguments, **options):
            words = text[::-1] if isinstance(text, str) else [entry[::-1] for entry in text]
            return super()._encode_plus(words, *arguments, **options)

    source.tokenizer.__class__ = Reversing
    with pytest.raises(UnsupportedError) as caught:
        check_tokenizer(source, folder, SENTENCES)
    assert "Reversing does in Python" in str(caught.value)
    assert "Wake me up" in str(caught.value)
    assert "Remedy" in str(caught.value)


def test_a_changed_vocabulary_is_noticed(checkpoint, tmp_path):
    source = open_source(checkpoint())
    folder = carry(source, tmp_path)

    def swap(data) -> None:
        vocab = data["model"]["vocab"]
        vocab["a"], vocab["e"] = vocab["e"], vocab["a"]

    edit_json(folder / "tokenizer.json", swap)
    with pytest.raises(UnsupportedError, match="the file"):
        check_tokenizer(source, folder, SENTENCES)


def test_a_character_tokenizer_is_refused(checkpoint, tmp_path):
    source = open_source(checkpoint())
    data = json.loads(source.tokenizer.backend_tokenizer.to_str())
    data["model"] = {"type": "Characters"}

    class Backend:
        @staticmethod
        def to_str() -> str:
            return json.dumps(data)

    source.tokenizer.__dict__["_tokenizer"] = Backend()
    with pytest.raises(UnsupportedError, match="'Characters' tokenizer cannot be carried"):
        carry(source, tmp_path)


def test_only_inputs_that_the_model_takes_are_made(checkpoint):
    source = open_source(checkpoint("bert", "feature-extraction"))
    assert tokenizer_inputs(source, {"input_ids", "attention_mask"}) == ("input_ids", "attention_mask")
    assert tokenizer_inputs(source, {"input_ids", "pixel_values"}) == ("input_ids",)
    assert np.isfinite(source.tokenizer.model_max_length)
