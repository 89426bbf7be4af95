"""What the command line shows: messages, tables and progress, all on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import rich.box
import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# How a status looks in a table.
STYLES = {"passed": "green", "failed": "bold red", "not executed": "yellow", "beyond": "red", "parts here": "bold red"}


class Console:
    """Human output. With `json_output` it shows errors only."""

    def __init__(self, json_output: bool = False, debug: bool = False):
        self.json_output = json_output
        self.debug = debug
        self._err = rich.console.Console(stderr=True, highlight=False)
        if not self._err.is_terminal:
            self._err.width = 160  # a log has no edge to wrap at

    def say(self, message: str = "") -> None:
        """A line of text."""
        if not self.json_output:
            self._err.print(Text(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        if not self.json_output:
            self._err.print(Text("note: ", style="yellow") + Text(message), soft_wrap=True)

    def error(self, message: str) -> None:
        self._err.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[Any]], right: Iterable[str] = ()) -> None:
        """A table; columns named in `right` are aligned to the right."""
        if self.json_output:
            return
        columns, right = list(columns), set(right)
        table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="bold")
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold", max_width=72)
        for row in rows:
            table.add_row(*(Text(str(cell), style=STYLES.get(str(cell), "")) for cell in row))
        self._err.print(table)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int], Callable[[], None]]]:
        """Progress bars for stages, one after another: `start(what, steps)` gives what to call after each step.

        Off when stderr is not a terminal, or with `--json`.
        """
        if self.json_output or not self._err.is_terminal:
            yield lambda what, steps: lambda: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as bars:

            def start(what: str, steps: int) -> Callable[[], None]:
                task = bars.add_task(what, total=steps)
                return lambda: bars.advance(task)

            yield start


def print_json(value: Any) -> None:
    """The one JSON document of `--json`."""
    import json

    json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()  # a reader that has gone is noticed here, where it is no error, and not when Python ends


def size(count: int) -> str:
    """Bytes for people: `90.3 MB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
