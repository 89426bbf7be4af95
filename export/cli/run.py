"""Run a bundle on texts or files as an app would: one result an input, of one artifact or of several side by side."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from ...runtime import load
from ...runtime.bundle import Bundle
from ...runtime.errors import RequestError
from ...runtime.results import Depth, Detection, Region, Segment, Transcript, to_plain
from .console import Console, print_json
from .generating import FLAGS, TASKS, add_generation_arguments, generation_call, streams, takes, write_stream
from .options import add_threads

HELP = "run a bundle on text, pictures or sounds"

# How many values of a vector are shown to people; --json gives all of them.
_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="inputs, texts or files (default: the lines of stdin)")
    parser.add_argument(
        "--target", metavar="TARGETS", help="which artifacts, or 'all' (default: the first that runs here)"
    )
    parser.add_argument("--context", help="question answering: the passage that TEXT is asked about")
    parser.add_argument("--pair", metavar="TEXT", help="text classification: the second text of a pair")
    parser.add_argument(
        "--choice", action="append", metavar="TEXT", help="multiple choice: an answer; pictures: a label; repeat"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="how many results, where the task ranks them")
    parser.add_argument(
        "--aggregate", metavar="STRATEGY", help="token classification: none, simple, first, average or max"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="object detection, frames of sound: the least score (default: 0.5)"
    )
    parser.add_argument(
        "--timestamps", action="store_const", const=True, help="speech recognition: when each word or segment is said"
    )
    parser.add_argument(
        "--language", metavar="CODE", help="speech recognition: what is spoken (default: what is heard)"
    )
    add_generation_arguments(parser)
    add_threads(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(arguments.bundle)
    task = bundle.manifest.task
    call = _call(arguments, task)
    texts = arguments.texts or [line.rstrip("\n") for line in sys.stdin]
    if not texts:
        raise RequestError("Nothing to run: give a TEXT, or lines on stdin.")
    results = {}
    targets = _targets(arguments.target, bundle)
    if streams(arguments, task, len(targets)):
        pipeline = load(bundle.root, target=targets[0], threads=arguments.threads)
        for text in texts:
            print(f"{text}\t" if len(texts) > 1 else "", end="")
            write_stream(arguments, pipeline, text)
        return 0
    for target in targets:
        pipeline = load(bundle.root, target=target, threads=arguments.threads)
        results[pipeline.session.artifact.target] = [call(pipeline, text) for text in texts]
    if arguments.json:
        plain = {target: to_plain(values) for target, values in results.items()}
        print_json({"task": task, "inputs": texts, "results": plain})
        return 0
    for index, text in enumerate(texts):
        for target, values in results.items():
            prefix = f"{target}: " if len(results) > 1 else ""
            print(f"{prefix}{text}\t{_shown(values[index])}" if len(texts) > 1 else f"{prefix}{_shown(values[index])}")
    return 0


def _targets(asked: str | None, bundle: Bundle) -> list[str | None]:
    if asked is None:
        return [None]
    if asked == "all":
        return list(bundle.manifest.targets)
    return [name.strip() for name in asked.split(",")]


def _call(arguments: argparse.Namespace, task: str) -> Any:
    """A function of a pipeline and a text, with the options that this task takes; others are refused, not dropped."""
    own = ("context", "pair", "choice", "top_k", "aggregate", "threshold", "timestamps", "language")
    given = {name for name in {*own, *FLAGS} if getattr(arguments, name) is not None}
    known = {
        "text-classification": {"pair", "top_k"},
        "token-classification": {"aggregate"},
        "question-answering": {"context", "top_k"},
        "fill-mask": {"top_k"},
        "multiple-choice": {"choice"},
        "image-classification": {"top_k"},
        "object-detection": {"threshold"},
        "audio-classification": {"top_k"},
        "audio-frame-classification": {"threshold"},
        "automatic-speech-recognition": {"timestamps", "language"},
        "zero-shot-image-classification": {"choice"},
    }.get(task, takes(task))
    if given - known:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given - known))
        raise RequestError(f"{flags} means nothing to {task}.")
    if task in TASKS:
        return generation_call(arguments, task)
    options = {"top_k": arguments.top_k} if arguments.top_k is not None else {}
    if task == "question-answering":
        if arguments.context is None:
            raise RequestError("Question answering needs the passage: --context TEXT.")
        return lambda pipeline, text: pipeline(question=text, context=arguments.context, **options)
    if task == "multiple-choice":
        if not arguments.choice:
            raise RequestError("Multiple choice needs answers: --choice TEXT --choice TEXT.")
        return lambda pipeline, text: pipeline(text, arguments.choice)
    if task == "zero-shot-image-classification":
        if not arguments.choice:
            raise RequestError("Zero-shot classification needs labels: --choice TEXT --choice TEXT.")
        return lambda pipeline, file: pipeline(file, arguments.choice)
    if task == "automatic-speech-recognition":
        if arguments.language is not None:
            options["language"] = arguments.language
        return lambda pipeline, file: pipeline(file, **options, **_times(pipeline, arguments.timestamps))
    if arguments.threshold is not None:
        return lambda pipeline, file: pipeline(file, threshold=arguments.threshold)
    if arguments.pair is not None:
        return lambda pipeline, text: pipeline({"text": text, "text_pair": arguments.pair}, **options)
    if task == "token-classification":
        strategy = arguments.aggregate or "simple"
        return lambda pipeline, text: pipeline(text, aggregation_strategy=strategy)
    if task == "text-classification":
        options.setdefault("top_k", 3)
    return lambda pipeline, text: pipeline(text, **options)


def _times(pipeline: Any, asked: bool | None) -> dict[str, Any]:
    return {"return_timestamps": pipeline.timestamps} if asked else {}


def _shown(result: Any) -> str:
    if isinstance(result, np.ndarray):
        values = " ".join(f"{value:.4f}" for value in result.reshape(-1)[:_SHOWN])
        return f"{list(result.shape)} [{values}{' ...' if result.size > _SHOWN else ''}]"
    if isinstance(result, list):
        return "  ".join(_shown(entry) for entry in result) or "(nothing)"
    if isinstance(result, Region):
        return f"{result.label} {(result.mask > 0).mean():.1%}"
    if isinstance(result, Depth):
        depth = result.predicted_depth
        return f"{list(depth.shape)} depths {depth.min():.4g} to {depth.max():.4g}"
    if isinstance(result, Detection):
        box = result.box
        return f"{result.label} {result.score:.3f} [{box.xmin} {box.ymin} {box.xmax} {box.ymax}]"
    if isinstance(result, Segment):
        return f"{result.label} {result.score:.3f} [{result.start:.2f}-{result.end:.2f} s]"
    if isinstance(result, Transcript) and result.chunks is not None:
        return "\n".join(
            f"[{_moment(one.timestamp[0])}-{_moment(one.timestamp[1])}] {one.text}" for one in result.chunks
        )
    plain = to_plain(result)
    if "generated_text" in plain:
        return plain["generated_text"]
    if "text" in plain:
        return plain["text"]
    if "label" in plain:
        return f"{plain['label']} {plain['score']:.3f}"
    if "token_str" in plain:
        return f"{plain['token_str']} {plain['score']:.3f}"
    if "entity_group" in plain or "entity" in plain:
        kind = plain.get("entity_group", plain.get("entity"))
        return f"{plain['word']} [{plain['start']}:{plain['end']}] {kind} {plain['score']:.3f}"
    if "answer" in plain:
        return f"{plain['answer']} [{plain['start']}:{plain['end']}] {plain['score']:.3f}"
    return f"{plain['choice']} {plain['score']:.3f}"


def _moment(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.2f}"
