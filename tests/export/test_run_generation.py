"""`palmtop run` on models that generate: text that appears as it is made, chats, and options that mean nothing."""

import json
import types

import pytest
from palmtop.export.cli import main
from palmtop.export.cli import run as command

from ..runtime.generation.chat_templates import TEMPLATES
from ..support.generating import decoder_checkpoint, encoder_decoder_checkpoint, generating_pipeline

PROMPT = "Set an alarm for"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """By task."""
    decoder = decoder_checkpoint(tmp_path_factory.mktemp("decoder"), chat_template=TEMPLATES["qwen"])
    both = encoder_decoder_checkpoint(tmp_path_factory.mktemp("both"))
    return {"text-generation": generating_pipeline(decoder), "text2text-generation": generating_pipeline(both)}


@pytest.fixture
def run(pipelines, monkeypatch, capsys):
    """`run(task, ...)`: the exit code, what is printed and what is said, over a pipeline that needed no export."""

    def call(task, *arguments):
        pipeline = pipelines[task]
        manifest = types.SimpleNamespace(task=task, targets=("torch",))
        bundle = types.SimpleNamespace(manifest=manifest, root="b")
        monkeypatch.setattr(command, "Bundle", types.SimpleNamespace(open=lambda path: bundle))
        monkeypatch.setattr(command, "load", lambda root, target=None, threads=None: pipeline)
        code = main(["run", "b", *arguments])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("task", ["text-generation", "text2text-generation"])
def test_what_is_new_is_printed(run, pipelines, task):
    code, printed, _ = run(task, PROMPT, "--max-new-tokens", "8")
    assert code == 0
    assert printed == "".join(pipelines[task].stream(PROMPT, max_new_tokens=8)) + "\n"


def test_it_appears_as_it_is_made(run, pipelines, monkeypatch):
    seen = []
    pipeline = pipelines["text-generation"]
    monkeypatch.setattr(pipeline, "stream", lambda text, **options: seen.append((text, options)) or iter(["a", "b"]))
    code, printed, _ = run(
        "text-generation", PROMPT, "--temperature", "0.5", "--seed", "3", "--stop", "x", "--stop", "y"
    )
    assert (code, printed) == (0, "ab\n")
    assert seen == [(PROMPT, {"temperature": 0.5, "seed": 3, "stop_strings": ["x", "y"], "do_sample": True})]


def test_a_chat_is_answered(run, pipelines):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    options = ("--chat", "--system", "Be brief.", "--max-new-tokens", "6", "--json")
    code, printed, _ = run("text-generation", PROMPT, *options)
    (expected,) = pipelines["text-generation"](chat, max_new_tokens=6, return_full_text=False)
    assert code == 0
    assert json.loads(printed)["results"]["torch"] == [[{"generated_text": expected.text}]]


def test_beams_are_printed_when_they_are_found(run, pipelines):
    code, printed, _ = run("text2text-generation", PROMPT, "--beams", "2", "--max-new-tokens", "5")
    (expected,) = pipelines["text2text-generation"](PROMPT, num_beams=2, max_new_tokens=5)
    assert (code, printed) == (0, f"{expected.text}\n")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("text-generation", ["--tgt-lang", "fr"]),
        ("text-generation", ["--system", "no chat"]),
        ("text-generation", ["--aggregate", "max"]),
        ("text-generation", ["--max-new-tokens", "-1"]),
        ("text2text-generation", ["--chat"]),
    ],
)
def test_options_that_mean_nothing_are_refused(run, task, options):
    code, printed, said = run(task, PROMPT, *options)
    assert (code, printed) == (2, "")
    assert "error" in said
