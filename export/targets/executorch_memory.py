"""Weights of a program that executorch neither copies nor holds as bytes: they go from where they lie into the file.

While it lowers, executorch deep-copies the program of each delegate, and then keeps every weight as a `bytes` object
until the file is written: with the model itself that is three times the weights in memory. Inside `uncopied(program)` a
deep copy shares the program's tensors (no pass writes into one; they put others in its place), and what is made of a
tensor's memory is a `Stored`, which passes for bytes wherever executorch counts, compares and passes on, and is read
when it is hashed and when it is written. A test compares the files byte for byte. Written for executorch 1.4.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from executorch.backends.xnnpack.operators import node_visitor
from executorch.exir._serialize import _cord, _named_data_store
from executorch.exir.emit import _emitter
from torch.export import ExportedProgram

from ..mapped import release

# What is smaller is not worth it.
_LEAST_BYTES = 1 << 16
# Bytes of weights that may be read before the pages that they were read from are given back.
_MOST_READ = 256 * 2**20


class Stored(bytes):
    """The bytes of a tensor's memory, which stay there. As a `bytes` object it is empty: see `view`."""

    tensor: torch.Tensor

    def __new__(cls, tensor: torch.Tensor) -> Stored:
        made = super().__new__(cls)
        made.tensor = tensor
        return made

    @property
    def view(self) -> memoryview:
        """The memory itself, (bytes,)."""
        storage = self.tensor.untyped_storage()
        return memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())).cast("B")

    @property
    def address(self) -> int:
        return self.tensor.untyped_storage().data_ptr()

    def __len__(self) -> int:
        return self.tensor.untyped_storage().nbytes()

    def __getitem__(self, place: Any) -> Any:
        found = self.view[place]
        return bytes(found) if isinstance(place, slice) else found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, bytes):
            return NotImplemented
        return self is other or contents(self) == contents(other)

    def __hash__(self) -> int:
        return hash(hashlib.sha256(self.view).digest())

    def __deepcopy__(self, memo: dict[int, Any]) -> Stored:
        return self


def contents(data: bytes) -> Any:
    """What a `bytes` object stands for, to be hashed or written."""
    return data.view if isinstance(data, Stored) else data


@contextlib.contextmanager
def uncopied(program: ExportedProgram) -> Iterator[None]:
    """Lower and write this program inside the block."""
    tensors = {
        value.untyped_storage().data_ptr(): value
        for store in (program.state_dict, program.constants)
        for value in store.values()
        if type(value) in (torch.Tensor, torch.nn.Parameter) and value.untyped_storage().nbytes() >= _LEAST_BYTES
    }
    known = set(map(id, tensors.values()))

    def stored(source: Any = b"", *rest: Any) -> bytes:
        if isinstance(source, ctypes.Array) and ctypes.sizeof(source) >= _LEAST_BYTES:
            tensor = tensors.get(ctypes.addressof(source))
            if tensor is not None and tensor.untyped_storage().nbytes() == ctypes.sizeof(source):
                return Stored(tensor)
        return bytes(source, *rest)

    def shared(original: Any) -> Any:
        return lambda tensor, memo: tensor if id(tensor) in known else original(tensor, memo)

    unreleased = 0

    def read(data: bytes) -> None:
        """Give back what was read of the weights' files, every now and then."""
        nonlocal unreleased
        unreleased += len(data) if isinstance(data, Stored) else 0
        if unreleased >= _MOST_READ:
            release()
            unreleased = 0

    def write_to_file(self: _cord.Cord, outfile: Any) -> None:
        for part in self._buffers:
            outfile.write(contents(part))
            read(part)

    def sha256(data: bytes = b"") -> Any:
        found = hashlib.sha256(contents(data))
        read(data)
        return found

    hashing = SimpleNamespace(sha256=sha256)
    with contextlib.ExitStack() as stack:
        for module in (node_visitor, _emitter):
            module.bytes = stored
            stack.callback(delattr, module, "bytes")
        for owner, name, replacement in (
            (node_visitor, "hashlib", hashing),
            (_emitter, "hashlib", hashing),
            (_named_data_store, "hashlib", hashing),
            (_cord.Cord, "write_to_file", write_to_file),
            (torch.Tensor, "__deepcopy__", shared(torch.Tensor.__deepcopy__)),
            (torch.nn.Parameter, "__deepcopy__", shared(torch.nn.Parameter.__deepcopy__)),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield
