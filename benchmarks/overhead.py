"""What palmtop's pipelines add to the tokenizer and the engine that they call.

    python benchmarks/overhead.py [--quick] [--json]      about two minutes, the bundles' exports included

The same 16 tokens of MiniLM go through a pipeline, through the bare tokenizer and through the bare session, in turns.
Bounds are printed with whether they are met.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures as shared

shared.one_thread()  # before numpy is imported

import embedders  # noqa: E402
import numpy as np  # noqa: E402
import pipelines  # noqa: E402
import report  # noqa: E402
import tokenizers  # noqa: E402
from figures import Bound, Figures  # noqa: E402
from palmtop.runtime import load  # noqa: E402

TOKENS = 16
ROUNDS, QUICK_ROUNDS = 2000, 200
MOST = 0.05  # of the pipeline's time


def parts_of(
    bundle: Path, checkpoint: Path, text: str
) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """A call of the pipeline, and calls of the two libraries below it that do the same work.

    The session is the pipeline's own: of two sessions of one file, the luck of where memory lies makes one faster.
    """
    pipeline: Any = load(bundle, target="onnx", threads=1)
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    session = pipeline.session.runner._session
    feeds = embedders.feeds_of([tokenizer.encode(text).ids])
    names = list(pipeline.outputs)
    if not np.array_equal(pipeline(text), session.run(names, feeds)[0][0]):
        raise SystemExit("The pipeline gives something else than its session.")
    return [lambda: pipeline(text), lambda: tokenizer.encode(text), lambda: session.run(names, feeds)]


def measure(bundle: Path, checkpoint: Path, text: str, rounds: int) -> tuple[float, float, float, float]:
    """Milliseconds of the pipeline, the tokenizer and the session, and what the pipeline takes beyond those two.

    Medians over rounds; the last one of the differences within each. A round is a call of the pipeline, and the
    tokenizer's followed by the session's, so that caches are as they are in a pipeline; which is first takes turns.
    """
    pipeline, tokenizer, session = parts_of(bundle, checkpoint, text)
    clock = time.perf_counter
    took = np.zeros((rounds, 3))
    for number in range(rounds):
        for which in (number % 2, 1 - number % 2):
            began = clock()
            if which:
                pipeline()
                took[number, 0] = clock() - began
            else:
                tokenizer()
                between = clock()
                session()
                took[number, 1:] = between - began, clock() - between
    whole, first, second = map(float, 1e3 * np.median(took, axis=0))
    return whole, first, second, 1e3 * float(np.median(took[:, 0] - took[:, 1:].sum(axis=1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds; writes no page")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; writes no page")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep bundles there, and take those that are there")
    options = parser.parse_args()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    figures = Figures(versions=report.versions("onnxruntime", "tokenizers"))
    minilm = embedders.minilm()
    text = next(entry.text for entry in pipelines.texts_of(500, minilm) if entry.tokens == TOKENS)
    rows = []
    with shared.folder(options.work) as work:
        for kind, bundle in pipelines.bundles_of("minilm", minilm, work).items():
            took = measure(bundle, minilm, text, rounds)
            over = took[-1] / took[0]
            rows.append([f"MiniLM {kind}", *(f"{value:.3f}" for value in took), f"{100 * over:.1f} %"])
            figures.raw[kind] = {
                "pipeline_ms": took[0],
                "tokenizer_ms": took[1],
                "session_ms": took[2],
                "overhead": over,
            }
            figures.bounds.append(Bound(f"MiniLM {kind}: share of a pipeline's time that is neither", over, MOST))
    head = [f"{TOKENS} tokens, ms", "pipeline", "bare tokenizer", "bare session", "neither", "share"]
    figures.tables["A call, one text"] = head, rows
    section = shared.Section("overhead", "Runtime overhead", "python benchmarks/overhead.py", _NOTE)
    shared.publish(section, figures, as_json=options.json, write=not options.quick)
    return 0


_NOTE = (
    "`load(bundle)(text)` beside `tokenizers.Tokenizer.encode(text)` and `onnxruntime.InferenceSession.run` on arrays "
    "that are made already. The pipeline's answer is the session's, bit for bit. Times are medians; `neither` is "
    "the median of the differences within a round."
)


if __name__ == "__main__":
    sys.exit(main())
