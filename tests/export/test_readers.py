"""The table of readers is part of every bundle with text, and `palmtop inspect` shows it."""

from __future__ import annotations

import json

import pytest
from palmtop.export.tokenization import readers
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import DamagedError
from palmtop.runtime.inspect import inspect_bundle
from palmtop.runtime.tokenizer_golden import read_tokenizer_golden
from palmtop.runtime.tokenizer_spec import read_tokenizer_spec

from ..support.spec_check import differences
from ..support.spec_reader import SpecTokenizer
from ..support.web import needed

PACKAGE = """
exports.Tokenizer = class {
  constructor(tokenizer, config) { this.config = config; }
  encode(text) {
    if (text === "no") throw new Error("no");
    return { ids: [this.config.start, text.length] };
  }
};
"""


def test_a_bundle_carries_the_specification_the_vectors_and_the_table(bundle):
    folder = bundle / "tokenizer"
    roles = {file.path: file.role for file in Bundle.open(bundle).manifest.files}
    for name in ("tokenizer_spec.json", "golden.jsonl", "compatibility.json", "vocab.txt"):
        assert roles[f"tokenizer/{name}"] == "tokenizer"
    spec = read_tokenizer_spec(folder / "tokenizer_spec.json")
    cases = [case for case in read_tokenizer_golden(folder / "golden.jsonl") if case.padding is None]
    assert differences(SpecTokenizer(spec), cases) == []


def test_inspect_shows_which_readers_give_the_vectors(bundle, palmtop):
    rows = palmtop("inspect", bundle, "--json").json["readers"]
    assert rows == json.loads((bundle / "tokenizer" / "compatibility.json").read_text())["readers"]
    shown = palmtop("inspect", bundle).err
    for row in rows:
        assert f"{row['reader']} {row['version'] or ''}".rstrip() + f": {row['result']}" in shown
    assert f"{rows[0]['passed']} of {rows[0]['vectors']} vectors" in shown


def test_a_bundle_without_a_table_can_be_inspected(exported, tmp_path):
    bundle = Bundle.open(exported.path)
    bundle.root = tmp_path
    assert readers.COMPATIBILITY_NAME == "compatibility.json"
    from palmtop.runtime.inspect import _readers

    assert _readers(bundle) == []
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "compatibility.json").write_text("[]")
    with pytest.raises(DamagedError, match="is not a table of readers"):
        _readers(bundle)
    assert inspect_bundle(Bundle.open(exported.path))["readers"]


def test_a_javascript_reader_is_run_where_node_finds_it(bundle, tmp_path, monkeypatch):
    needed("node")
    package = tmp_path / "modules" / "@huggingface" / "tokenizers"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "@huggingface/tokenizers", "version": "9.9", "main": "main.js"}')
    (package / "main.js").write_text(PACKAGE)
    monkeypatch.setenv("NODE_PATH", str(tmp_path / "modules"))
    monkeypatch.setattr(readers, "_MODULES", {})
    folder = bundle / "tokenizer"
    case = read_tokenizer_golden(folder / "golden.jsonl")[0]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "start": 7}))

    def asked(text: str, ids: list[int]):
        from dataclasses import replace

        return replace(case, name=text, text=text, ids=ids)

    good, bad, raises = asked("ab", [7, 2]), asked("abc", [7, 4]), asked("no", [7, 2])
    bare = {"ab": [2], "abc": [3], "no": [2]}
    row = readers.compatibility(folder, [good], bare)[1]
    assert (row["reader"], row["version"], row["result"]) == (readers.NODE_READER, "9.9", "passes")
    row = readers.compatibility(folder, [good, bad, raises], bare)[1]
    assert (row["result"], row["passed"], row["vectors"], row["why"]) == ("differs", 1, 3, "first with 'abc'")
    (package / "main.js").write_text("exports.Tokenizer = class { constructor() { throw new Error('not mine'); } };")
    row = readers.compatibility(folder, [good], bare)[1]
    assert (row["result"], row["why"]) == ("refuses", "Error: not mine")


def test_our_own_reader_is_in_the_table_where_it_is_built(bundle, tmp_path, monkeypatch):
    needed("node")
    folder = bundle / "tokenizer"
    cases = read_tokenizer_golden(folder / "golden.jsonl")
    answers = {
        "passes": {"vectors": 79, "passed": 79, "differences": []},
        "differs": {"vectors": 79, "passed": 78, "differences": ["accents: ids"]},
        "refuses": {"refused": "step 'x' is unknown"},
    }
    program = tmp_path / "golden.mjs"
    monkeypatch.setattr(readers, "_OWN", program)
    monkeypatch.setattr(readers, "_MODULES", {})
    for result, answer in answers.items():
        program.write_text(f"console.log({json.dumps(json.dumps(answer))})", encoding="utf-8")
        row = readers.compatibility(folder, cases, {})[-1]
        assert (row["reader"], row["result"]) == (readers.OWN_READER, result)
    program.write_text("process.exit(3)", encoding="utf-8")
    assert readers.compatibility(folder, cases, {})[-1]["result"] == "aborts"
