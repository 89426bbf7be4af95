"""The web app's reader gives every golden vector of every kind of tokenizer, and reads any other text alike."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import subprocess
from pathlib import Path

import pytest
from palmtop.export.texts import SENTENCES
from palmtop.export.tokenization.golden import tokenizer_cases
from palmtop.export.tokenization.patterns import KNOWN
from palmtop.export.tokenization.rebuild import rebuilt
from palmtop.export.tokenization.spec import specification
from palmtop.runtime.tokenizer_golden import TokenizerCase, utf16_offsets, write_tokenizer_golden
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..export.test_tokenizer_spec import PIECES
from ..support.moses import VARIANTS
from ..support.vocabularies import KINDS, tiktoken
from ..support.web import built, needed


def any_text(backend: Tokenizer, number: int) -> TokenizerCase:
    """A text of pieces that are treated alone somewhere, with what `tokenizers` makes of it."""
    rng = random.Random(number)
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 10)))
    pair = None if rng.random() < 0.7 else rng.choice(SENTENCES)
    found = backend.encode(text, pair)
    offsets = [list(entry) for entry in found.offsets]
    return TokenizerCase(
        name=f"any text {number}: {text!r}",
        text=text,
        text_pair=pair,
        add_special_tokens=True,
        truncation=None,
        padding=None,
        ids=found.ids,
        attention_mask=found.attention_mask,
        type_ids=found.type_ids,
        special_tokens_mask=found.special_tokens_mask,
        offsets=offsets,
        offsets_utf16=utf16_offsets(text, pair, offsets, found.sequence_ids),
        decoded=backend.decode(found.ids, skip_special_tokens=False),
        decoded_without_special=backend.decode(found.ids, skip_special_tokens=True),
    )


def write_folder(folder: Path, tokenizer: PreTrainedTokenizerBase, slow: PreTrainedTokenizerBase | None = None) -> Path:
    """A tokenizer folder as far as the reader looks into it."""
    folder.mkdir()
    backend = tokenizer.backend_tokenizer
    cases = tokenizer_cases(tokenizer, slow)
    backend.no_padding()
    backend.no_truncation()
    spec = specification(
        json.loads(backend.to_str()),
        inputs=("input_ids",),
        max_length=64,
        sides=("right", "right"),
        pad={"id": tokenizer.pad_token_id or 0, "type_id": 0, "multiple_of": None},
        cleanup=False,
    )
    (folder / "tokenizer_spec.json").write_text(json.dumps(spec), encoding="utf-8")
    write_tokenizer_golden(folder / "golden.jsonl", [*cases, *(any_text(backend, i) for i in range(150))])
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    patterns = {f"tiktoken, {name}": functools.partial(tiktoken, pattern) for pattern, name in KNOWN.items()}
    made = {}
    for name, maker in (KINDS | patterns).items():
        backend = maker()
        pad = next((t.content for t in backend.get_added_tokens_decoder().values() if t.special), None)
        wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, clean_up_tokenization_spaces=False)
        made[name] = write_folder(root / name, wrapped)
    for name, maker in VARIANTS.items():
        slow = maker(root / f"{name} of Python")
        fast = rebuilt(slow)
        fast.clean_up_tokenization_spaces = False
        made[name] = write_folder(root / name, fast, slow)
    return made


def read(*folders: Path) -> list[dict]:
    """What the reader says about each folder."""
    command = [needed("node"), str(built("build/golden.mjs")), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_reader_gives_all_golden_vectors_of_every_kind(folders):
    answers = read(*folders.values())
    assert len(answers) == len(KINDS) + len(KNOWN) + len(VARIANTS)
    for name, answer in zip(folders, answers, strict=True):
        assert answer.get("differences") == [], (name, answer)
        assert answer["vectors"] == answer["passed"] > 200, name


def test_a_vector_that_is_not_given_is_named(folders, tmp_path):
    folder = tmp_path / "wrong"
    folder.mkdir()
    (folder / "tokenizer_spec.json").write_bytes((folders["bert"] / "tokenizer_spec.json").read_bytes())
    case = any_text(KINDS["bert"](), 3)
    wrong = [dataclasses.replace(case, name=name, **{name: value}) for name, value in changed(case).items()]
    write_tokenizer_golden(folder / "golden.jsonl", [case, *wrong])
    (answer,) = read(folder)
    assert answer["passed"] == 1
    assert [line.split(", ", 1)[1].split(":")[0] for line in answer["differences"]] == list(changed(case))


def changed(case: TokenizerCase) -> dict:
    """Each field of what comes out, off by a little. Ids are left out: what they decode to would change too."""
    fields = ("attention_mask", "type_ids", "special_tokens_mask")
    moved = {name: [value + 1 for value in getattr(case, name)] for name in fields}
    for name in ("offsets", "offsets_utf16"):
        moved[name] = [[begin, end + 1] for begin, end in getattr(case, name)]
    return moved | {"decoded": f"{case.decoded}.", "decoded_without_special": f"{case.decoded_without_special}."}


# --- what the reader refuses ----------------------------------------------------------------------------------------

UNKNOWN = {
    "a newer version": (("spec_version",), 2, "version 2"),
    "another format": (("format",), "tokenizers", "not a palmtop tokenizer"),
    "an unknown model": (("model", "type"), "bigram", "bigram"),
    "an unknown normaliser step": (("normalizer",), [{"type": "transliterate"}], "transliterate"),
    "an unknown setting of a step": (("normalizer",), [{"type": "lowercase", "locale": "tr"}], "locale"),
    "an unknown pre-tokenizer step": (("pre_tokenizer",), [{"type": "morphemes"}], "morphemes"),
    "an unknown behaviour": (
        ("pre_tokenizer",),
        [{"type": "split", "match": {"literal": "a"}, "behavior": "shuffled", "invert": False}],
        "shuffled",
    ),
    "an unknown matcher": (
        ("pre_tokenizer",),
        [{"type": "split", "match": {"glob": "a*"}, "behavior": "removed", "invert": False}],
        "match",
    ),
    "a class that is not there": (
        ("pre_tokenizer",),
        [{"type": "split", "match": {"class": "runes"}, "behavior": "removed", "invert": False}],
        "runes",
    ),
    "a pattern that browsers do not read": (
        ("normalizer",),
        [
            {
                "type": "replace",
                "match": {"regex": "(?>a)", "name": None, "source": "(?>a)"},
                "content": "",
                "keep": False,
            }
        ],
        "cannot read a pattern",
    ),
    "an unknown decoder step": (("decoder",), [{"type": "sentences"}], "sentences"),
    "an unknown strategy": (("truncation", "strategy"), "middle", "middle"),
    "a special token without a name": (("post_processor", "single"), [{"special": 9999, "type_id": 0}], "9999"),
    "a field that is not on the page": (("dropout",), 0.1, "dropout"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_the_reader_refuses(what, folders, tmp_path):
    place, value, named = UNKNOWN[what]
    spec = json.loads((folders["bert"] / "tokenizer_spec.json").read_text(encoding="utf-8"))
    inner = spec
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tokenizer_spec.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "golden.jsonl").write_text("", encoding="utf-8")
    (answer,) = read(folder)
    assert named in answer["refused"]
