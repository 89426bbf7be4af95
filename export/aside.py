"""Work in a process beside this one: a fork, which has all that this process has and sends back what it makes.

Threads would wait for each other (tracing a model is Python), and a process started anew would import torch and load
the model first. A fork is for a process that palmtop has to itself, as the command line's is: of its threads only the
one that forks goes on in the child, and locks that the rest held stay locked. So callers of the Python functions have
to ask for it (`processes`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import torch

from ..runtime.errors import RequestError
from . import memory

# How many processes the command line may use; without it as many as there are processors.
VARIABLE = "PALMTOP_PROCESSES"
# Beyond these bytes of weights everything happens in one process: it uses all processors there, and memory once.
_MOST_WEIGHTS = 500_000_000
# What the first process may still take when the second one starts: libraries, a program, and copies of small weights.
_FIRST, _FIRST_COPIES = 1_200_000_000, 2
# Seconds that a process has to leave nothing behind.
_PATIENCE = 2.0


def allowed() -> int:
    """How many processes a command may use. Raises RequestError for a PALMTOP_PROCESSES that is no number."""
    said = os.environ.get(VARIABLE)
    if said is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not said.isdigit() or int(said) < 1:
        raise RequestError(f"{VARIABLE}={said} is not a number of processes, from 1 on.")
    return int(said)


def worthwhile(processes: int, weights: int) -> bool:
    """Whether two processes are better than one for a model with so many bytes of weights."""
    if processes < 2 or not sys.platform.startswith("linux") or weights > _MOST_WEIGHTS:
        return False
    free = memory.available()
    return free is None or free >= _FIRST + _FIRST_COPIES * weights + memory.beside(weights)


class Turns:
    """Places of a row, each given once: to one process from the first on, to the other from the last back.

    Made before the other process is, which inherits it.
    """

    def __init__(self, count: int):
        context = multiprocessing.get_context("fork")
        self._start, self._end, self._lock = context.RawValue("l", 0), context.RawValue("l", count), context.Lock()

    def first(self) -> int | None:
        """The first place that nobody has; None when there is none."""
        with self._lock:
            if self._start.value == self._end.value:
                return None
            self._start.value += 1
            return self._start.value - 1

    def last(self) -> int | None:
        """The last place that nobody has; None when there is none."""
        with self._lock:
            if self._start.value == self._end.value:
                return None
            self._end.value -= 1
            return self._end.value


class Beside:
    """The process beside this one, or what stands for it when there is none: work is then done when it is asked for."""

    def __init__(self, steps: Iterator[Any], connection: Connection | None = None):
        self._steps, self._connection, self._failed = steps, connection, False

    def get(self) -> Any:
        """What comes next; waits for it.

        Raises:
            What the work raised, of the same class.
            MemoryError: the process was ended from outside, as systems do when memory runs out.
        """
        if self._connection is None:
            return next(self._steps)
        try:
            value, error, told = self._connection.recv()
        except EOFError:
            self._failed = True
            raise MemoryError("A process of the export was ended from outside.") from None
        if error is not None:
            self._failed = True
            error.add_note(told)
            raise error
        return value

    def settle(self) -> None:
        """Raise what the work raised, if it did: in one process it would have come first."""
        while self._connection is not None and not self._failed:
            try:
                if self.get() is _END:
                    return
            except MemoryError:
                return


class _End:
    """Marks that nothing more comes."""

    def __reduce__(self) -> str:
        return "_END"


_END = _End()


@contextlib.contextmanager
def beside(work: Callable[[], Iterator[Any]], apart: bool, comes_first: bool = True) -> Iterator[Beside]:
    """Let a generator work in a process of its own while the block runs; it ends with the block.

    Args:
        work: what it yields can be pickled; it is read by nobody but this process.
        apart: False lets it work in this process, as far as it is asked.
        comes_first: whether one process would do the work before the block: errors of the work are then told first.
    """
    if not apart:
        yield Beside(work())
        return
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, there), daemon=True)
    with _tokenizers_may_fork():
        process.start()
    there.close()
    other = Beside(iter(()), here)
    try:
        yield other
    except Exception:
        if comes_first:
            other.settle()
        raise
    finally:
        _end(process)
        here.close()


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process: asked to, it removes what it keeps in temporary folders; it is not waited for long."""
    process.terminate()
    process.join(_PATIENCE)
    process.kill()
    process.join()


def _work(work: Callable[[], Iterator[Any]], connection: Connection) -> None:
    """What the child does. Its threads of OpenMP stayed with the parent, so it computes on one.

    Ctrl-C is the parent's, which then ends the child.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _unwind)
    torch.set_num_threads(1)
    try:
        for value in work():
            connection.send((value, None, ""))
        connection.send((_END, None, ""))
    except KeyboardInterrupt:
        pass  # asked to end: nobody listens
    except BaseException as error:
        told = "".join(traceback.format_exception(error))
        try:
            connection.send((None, error, told))
        except Exception:  # one that cannot be pickled
            connection.send((None, RuntimeError(f"{type(error).__name__}: {error}"), told))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to be cleaned up


def _unwind(_signal: int, _frame: FrameType | None) -> None:
    """Asked to end: what is in temporary folders goes, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _tokenizers_may_fork() -> Iterator[None]:
    """The `tokenizers` library warns of every fork after it used threads, unless it was told about threads."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
