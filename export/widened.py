"""Large half-precision checkpoints as fp32 ones in a temporary folder, so that their weights can be mapped too.

Loaded as they are, their weights would be made fp32 in memory, and stay there. Written to disk one by one they are in
memory only as far as they are read. The files have no name any more once they are mapped, and vanish with the process.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from ..runtime.errors import RequestError

# Checkpoints of fewer bytes in fp32 are made so in memory.
_LEAST_BYTES = 1_000_000_000
_INDEX = "model.safetensors.index.json"
_HALVES = ("F16", "BF16")
_ALIGNMENT = 64


def loaded_files(folder: Path) -> list[Path]:
    """The weight files that Transformers reads in a folder: those of the index, or the one file, or else all."""
    index = folder / _INDEX
    single = folder / "model.safetensors"
    if index.is_file() and not single.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return sorted(path for path in {folder / Path(name).name for name in names} if path.is_file())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            pass  # loading tells what is wrong with it
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


@contextlib.contextmanager
def mappable(folder: Path) -> Iterator[Path]:
    """Where to load a checkpoint from, so that its weights are mapped: the folder itself, or a copy in fp32."""
    files = loaded_files(folder)
    if not _worth_it(files):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="palmtop-") as name:
        copy = Path(name)
        for path in folder.iterdir():
            if path.suffix != ".safetensors":
                (copy / path.name).symlink_to(path.resolve())
        try:
            for path in files:
                _write_wide(path, copy / path.name)
        except OSError as error:
            raise RequestError(
                f"The weights in fp32 find no room in {copy.parent} ({error.strerror or error}). "
                "Remedy: make room, or set TMPDIR to a folder on a larger disk."
            ) from error
        yield copy


def _worth_it(files: list[Path]) -> bool:
    wide = half = 0
    for path in files:
        for entry in _entries(path):
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            is_half = entry["dtype"] in _HALVES
            wide, half = wide + size * (1 + is_half), half + size * is_half
    return half > 0 and wide >= _LEAST_BYTES


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= path.stat().st_size else {}
        return [entry for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, AttributeError):  # loading tells what is wrong with it
        return []


def _write_wide(source: Path, destination: Path) -> None:
    """A safetensors file with its half-precision tensors as fp32, the others as they are, in the same order."""
    with safe_open(source, framework="pt") as file, destination.open("wb") as out:
        header: dict[str, Any] = {"__metadata__": file.metadata() or {"format": "pt"}}
        names, offset = list(file.keys()), 0
        for name in names:
            part = file.get_slice(name)
            shape, dtype = list(part.get_shape()), part.get_dtype()
            tensor = file.get_tensor(name)  # mapped: nothing is read yet
            width = 4 if dtype in _HALVES else tensor.element_size()
            end = offset + tensor.numel() * width
            header[name] = {
                "dtype": "F32" if dtype in _HALVES else dtype,
                "shape": shape,
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _write(out, file.get_tensor(name))


def _write(out: BinaryIO, tensor: torch.Tensor) -> None:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    flat = tensor.contiguous().view(-1)
    out.write(memoryview(flat.view(torch.uint8).numpy()))
