"""The compatibility table: which readers of device-side libraries give the golden ids, found by running each of them.

Readers in C++ know no pairs and no truncation, and leave special tokens to the app or not; they are held to the ids
of single texts, with or without special tokens, one of the two throughout. They run in processes of their own, all at
once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ...runtime.tokenizer_golden import TokenizerCase

COMPATIBILITY_NAME = "compatibility.json"
_CHILD = Path(__file__).with_name("reader_child.py")
_NODE_CHILD = Path(__file__).with_name("reader_child.mjs")
_MODULES = {
    "pytorch-tokenizers": "pytorch_tokenizers",
    "onnxruntime-extensions": "onnxruntime_extensions",
    "sentencepiece": "sentencepiece",
}
NODE_READER = "@huggingface/tokenizers"
# The reader of the sample app for browsers, where `make web-build` has built it; it checks everything in the vectors.
OWN_READER = "palmtop, TypeScript"
_OWN = Path(__file__).resolve().parents[2] / "sample_apps" / "web" / "build" / "golden.mjs"
# A reader that takes longer than this many seconds is stopped.
_PATIENCE = 60


@dataclass(frozen=True)
class Reading:
    """What a reader did with the golden vectors.

    `result`: `passes` (all of them), `differs`, `refuses` (it does not load the files) or `aborts`.
    `special_tokens`: whether the reader put special tokens around the text; None when it read nothing.
    `why`: what it said, or the first text that it reads differently.
    """

    reader: str
    version: str | None
    result: str
    passed: int = 0
    vectors: int = 0
    special_tokens: bool | None = None
    why: str | None = None


def compatibility(folder: Path, cases: list[TokenizerCase], bare: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Run the readers that are installed on a finished tokenizer folder.

    Args:
        cases: the golden vectors, all of which `tokenizers` itself was found to give.
        bare: text -> ids without special tokens.
    """
    found = [Reading("tokenizers", tokenizers.__version__, "passes", len(cases), len(cases), True)]
    singles = [case for case in cases if case.text in bare and not (case.truncation or case.padding or case.text_pair)]
    singles = [case for case in singles if case.add_special_tokens]
    texts = json.dumps([case.text for case in singles])
    own = _started(["node", str(_OWN), "."], folder) if _OWN.is_file() and shutil.which("node") else None
    running = [(name, _started(command, folder)) for name, command in _commands(folder)]
    for _, process in running:
        assert process.stdin is not None
        try:
            process.stdin.write(texts)
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
    for name, process in running:
        found.append(_reading(name, process, singles, bare))
    if own is not None:
        found.append(_own_reading(own))
    return [asdict(reading) for reading in found]


def _commands(folder: Path) -> list[tuple[str, list[str]]]:
    commands = []
    for name, module in _MODULES.items():
        if name == "sentencepiece" and not any(folder.glob("*.model")):
            continue
        if importlib.util.find_spec(module) is not None:
            commands.append((name, [sys.executable, "-I", str(_CHILD), name, str(folder)]))
    package = _node_package()
    if package is not None:
        commands.append((NODE_READER, ["node", str(_NODE_CHILD), str(package), str(folder)]))
    return commands


def _node_package() -> Path | None:
    """Where node would find the reader: NODE_PATH, or node_modules of the folder that the command runs in."""
    if shutil.which("node") is None:
        return None
    places = [*os.environ.get("NODE_PATH", "").split(os.pathsep), "node_modules"]
    found = (Path(place) / NODE_READER for place in places if place)
    return next((path.resolve() for path in found if (path / "package.json").is_file()), None)


def _started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",  # what C++ readers log may end in the middle of a character
        env=quiet,
        cwd=folder,
    )


def _reading(
    name: str, process: subprocess.Popen[str], cases: list[TokenizerCase], bare: dict[str, list[int]]
) -> Reading:
    try:
        out, said = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Reading(name, None, "aborts", why=f"no answer in {_PATIENCE} s")
    try:
        answer = json.loads(out)
    except ValueError:
        return Reading(name, None, "aborts", why=f"its process ended with {process.returncode}")
    if "refused" in answer:
        return Reading(name, answer["version"], "refuses", why=_reason(answer["refused"], said))
    with_special = [ids == case.ids for ids, case in zip(answer["ids"], cases, strict=True)]
    without = [ids == bare[case.text] for ids, case in zip(answer["ids"], cases, strict=True)]
    special = sum(with_special) > sum(without)
    right = with_special if special else without
    first = next((case.text for case, fine in zip(cases, right, strict=True) if not fine), None)
    return Reading(
        name,
        answer["version"],
        "passes" if first is None else "differs",
        sum(right),
        len(right),
        special,
        None if first is None else f"first with {first[:60]!r}",
    )


def _own_reading(process: subprocess.Popen[str]) -> Reading:
    """Our own reader's verdict: it goes through the folder's vectors itself."""
    try:
        out, _ = process.communicate(timeout=_PATIENCE)
        answer = json.loads(out)
    except (subprocess.TimeoutExpired, ValueError):
        process.kill()
        process.communicate()
        return Reading(OWN_READER, None, "aborts", why=f"no answer in {_PATIENCE} s, or none that can be read")
    if "refused" in answer:
        return Reading(OWN_READER, None, "refuses", why=" ".join(answer["refused"].split())[:200])
    passed, vectors = answer["passed"], answer["vectors"]
    first = None if passed == vectors else f"first: {str(answer['differences'][0])[:60]}"
    return Reading(OWN_READER, None, "passes" if passed == vectors else "differs", passed, vectors, True, first)


def _reason(error: str, said: str) -> str:
    """Why a reader refuses, in one line: ExecuTorch's logs it (`E file.cpp:1] reason`) and raises a general one."""
    logged = re.findall(r"^E [\w:.]+\] (.*)$", said, re.MULTILINE)
    return " ".join((logged[-1] if logged else error).split())[:200]
