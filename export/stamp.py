"""The manifest's identity inside artifacts that are finished: replaced in place, since it always has the same length.

Every format holds it as text (ONNX metadata, Core ML user-defined metadata, an ExecuTorch constant), and lowering a
model again to change 64 letters would take minutes.
"""

from __future__ import annotations

import mmap
from pathlib import Path


def restamp(path: Path, old: str, new: str) -> int:
    """Replace an identity in a file, or in all files of a folder. Gives how often it was found."""
    if len(old) != len(new) or len(old) < 32:
        raise ValueError(f"'{old}' and '{new}' are not identities of one length")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return sum(_replace(file, old.encode(), new.encode()) for file in files)


def _replace(file: Path, old: bytes, new: bytes) -> int:
    if file.stat().st_size < len(old):
        return 0
    count = 0
    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as data:
        at = data.find(old)
        while at >= 0:
            data[at : at + len(new)] = new
            count += 1
            at = data.find(old, at + len(new))
    return count
