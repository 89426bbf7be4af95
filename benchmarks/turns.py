"""Contenders that answer in processes of their own (answering.py), asked in turns."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_SCRIPT = Path(__file__).resolve().parent / "answering.py"


@dataclass(frozen=True)
class Group:
    """Contenders of one process. `specifications` as answering.py takes them."""

    python: Path
    specifications: Mapping[str, Mapping[str, Any]]


@dataclass
class Text:
    """A text, and how many tokens it has."""

    text: str
    tokens: int


class Contenders:
    """All contenders by name, each in a process that waits for requests."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen] = {}
        self._said: dict[int, Any] = {}

    @classmethod
    @contextmanager
    def start(cls, groups: Sequence[Group]) -> Iterator[Contenders]:
        """Start a process for each group; they end with the `with` block.

        Raises:
            RuntimeError: one failed; with the end of what it said.
        """
        with ExitStack() as stack:
            contenders = cls()
            for group in groups:
                said = stack.enter_context(tempfile.TemporaryFile())
                command = [str(group.python), str(_SCRIPT), json.dumps(group.specifications)]
                # Where it starts nothing lies that could hide a peer's packages.
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, cwd=_SCRIPT.parent
                )
                stack.callback(_stop, process)
                contenders._said[process.pid] = said
                contenders._processes.update(dict.fromkeys(group.specifications, process))
                contenders._read(process)  # one after the other: loading takes every core
            yield contenders

    @property
    def names(self) -> list[str]:
        return list(self._processes)

    def ask(self, name: str, texts: Sequence[Text], batch: int | None) -> tuple[float, np.ndarray]:
        """Seconds, and a row for each text. `batch`: how many texts run together; None: each is a request of its own.

        Raises:
            RuntimeError: the process failed; with the end of what it said.
        """
        process = self._processes[name]
        assert process.stdin is not None
        request = {"name": name, "batch": batch}
        request |= {"texts": [text.text for text in texts], "lengths": [text.tokens for text in texts]}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply = self._read(process)
        rows = np.frombuffer(base64.b64decode(reply["rows"]), np.float32).reshape(reply["shape"])
        return reply["seconds"], rows

    def _read(self, process: subprocess.Popen) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            said = self._said[process.pid]
            said.seek(0)
            raise RuntimeError(f"A contender failed:\n{said.read().decode('utf-8', 'replace')[-4000:]}")
        return json.loads(line)


def _stop(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def in_turns(
    contenders: Contenders,
    texts: Sequence[Text],
    block: int,
    batches: Mapping[str, int | None],
    advance: Callable[[], None],
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Every contender answers every text, block by block in turns (and turns at being first).

    Args:
        block: how many texts a request has.
        batches: of each contender, how many texts run together.

    Returns:
        The seconds of each block, and the rows of all texts, by contender.
    """
    names = list(batches)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for turn, start in enumerate(range(0, len(texts), block)):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            took, found = contenders.ask(name, texts[start : start + block], batches[name])
            seconds[name].append(took)
            rows[name].append(found)
        advance()
    return seconds, {name: np.concatenate(found) for name, found in rows.items()}
