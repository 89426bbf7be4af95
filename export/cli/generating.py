"""What `palmtop run` asks of models that generate: its options, and text that appears as it is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ...runtime.errors import RequestError
from ...runtime.pipelines import Pipeline

TASKS = ("text-generation", "text2text-generation", "image-to-text")
# Command line -> option of a call. Others than these are said for no generating task.
_OPTIONS = {
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "seed",
    "beams": "num_beams",
    "stop": "stop_strings",
    "repetition_penalty": "repetition_penalty",
    "src_lang": "src_lang",
    "tgt_lang": "tgt_lang",
}
FLAGS = (*_OPTIONS, "chat", "system")


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models that generate")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="how many tokens at most (default: the model's)")
    group.add_argument("--temperature", type=float, metavar="T", help="draw tokens instead of taking the likeliest")
    group.add_argument("--top-p", type=float, metavar="P", help="draw among the tokens that make up this probability")
    group.add_argument("--seed", type=int, metavar="N", help="the same draws every time")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: repeat less")
    group.add_argument("--beams", type=int, metavar="N", help="search for the likeliest text with so many beams")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; repeat")
    group.add_argument("--chat", action="store_true", default=None, help="TEXT is a message, answered as in a chat")
    group.add_argument("--system", metavar="TEXT", help="with --chat: what the system message says")
    group.add_argument("--src-lang", metavar="CODE", help="translation: the language of TEXT")
    group.add_argument("--tgt-lang", metavar="CODE", help="translation: the language to translate to")


def takes(task: str) -> set[str]:
    """The options that a task takes."""
    if task not in TASKS:
        return set()
    chat, languages = {"chat", "system"}, {"src_lang", "tgt_lang"}
    others = {"text-generation": languages, "text2text-generation": chat}.get(task, chat | languages)
    return set(FLAGS) - others


def generation_call(arguments: argparse.Namespace, task: str) -> Callable[[Pipeline, str], Any]:
    """A function of a pipeline and a text that gives the whole result."""
    prompt, options = _prompt(arguments), _options(arguments)
    if task == "text-generation":
        options["return_full_text"] = False
    return lambda pipeline, text: pipeline(prompt(text), **options)  # type: ignore[operator]


def write_stream(arguments: argparse.Namespace, pipeline: Pipeline, text: str) -> None:
    """Print the text as it is made."""
    for piece in pipeline.stream(_prompt(arguments)(text), **_options(arguments)):  # type: ignore[attr-defined]
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


def streams(arguments: argparse.Namespace, task: str, targets: int) -> bool:
    """Whether text is to appear as it is made: beams and several artifacts have none to show before the end."""
    return task in TASKS and not arguments.json and targets == 1 and (arguments.beams or 1) == 1


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, flag) for flag, name in _OPTIONS.items() if getattr(arguments, flag) is not None}
    if {"temperature", "top_p", "top_k", "seed"} & set(given):
        given["do_sample"] = given.get("temperature") != 0
    return given


def _prompt(arguments: argparse.Namespace) -> Callable[[str], Any]:
    if arguments.system is not None and not arguments.chat:
        raise RequestError("--system is for chats: add --chat.")
    if not arguments.chat:
        return lambda text: text
    before = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return lambda text: [*before, {"role": "user", "content": text}]
