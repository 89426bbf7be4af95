"""Weights that lie in files: their pages are given back between the stages of an export.

`from_pretrained` maps fp32 safetensors, so weights are in memory only as far as something read them. What was read
stays there, though, and would stand beside the artifact that is being written or verified. Whoever reads the weights
again gets them again, from the system's file cache or from the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_MAPS = Path("/proc/self/smaps")
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* +(/.*)$")
_WEIGHTS = (".safetensors",)
_NAMELESS = " (deleted)"  # of a file that is in use only


def release(suffixes: tuple[str, ...] = _WEIGHTS) -> int:
    """Give back the pages of weight files that were read and never written to, and say how many bytes that was.

    On systems without `/proc` nothing happens.
    """
    found = 0
    advise = _advise()
    if advise is None:
        return 0
    for start, end, path, resident, changed in _mappings():
        # Pages that were written to are this process's own: the system would drop what was written.
        if (
            path.removesuffix(_NAMELESS).endswith(suffixes)
            and resident
            and not changed
            and advise(start, end - start) == 0
        ):
            found += resident
    return found


def trim() -> None:
    """Give back memory that was freed, which the C library keeps between what is still in use. Elsewhere than with
    glibc nothing happens."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _advise() -> Callable[[int, int], int] | None:
    if not _MAPS.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return lambda start, size: call(start, size, mmap.MADV_DONTNEED)


def _mappings() -> Iterator[tuple[int, int, str, int, int]]:
    """Mapped files: start, end, path, bytes in memory, bytes that this process has changed."""
    head, sizes = None, {"Rss": 0, "Anonymous": 0}
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            if head is not None:
                yield (*head, sizes["Rss"], sizes["Anonymous"])
            named = _HEAD.match(line)
            head = (int(named[1], 16), int(named[2], 16), named[3]) if named else None
            continue
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    if head is not None:
        yield (*head, sizes["Rss"], sizes["Anonymous"])
