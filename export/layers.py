"""What every module of the eager model gives, in order of execution: forward hooks, nothing patched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from .capture import flat_tensors
from .reference import Call, Reference


@dataclass
class ModuleValue:
    """The first floating-point tensor that a module gave in its last call.

    `source`: the module whose output this one was called with, if any. `same`: it gave its input back unchanged.
    `calls`: how often it ran. `one_of_several`: it gave other tensors of that shape too (rotary cosines and sines), so
    that a shape does not tell which is which.
    """

    path: str
    kind: str
    value: np.ndarray
    source: str | None
    same: bool
    calls: int
    one_of_several: bool = False


def module_values(
    reference: Reference, feeds: dict[str, np.ndarray], model: torch.nn.Module | None = None
) -> tuple[dict[str, ModuleValue], dict[str, np.ndarray]]:
    """Values by module path, in the order in which the (last) calls ended; and the reference's outputs.

    Args:
        model: another instance to run, in fp64 say (`Reference.other_model`).
    """
    found: dict[str, ModuleValue] = {}
    owners: dict[int, str] = {}
    held: list[torch.Tensor] = []  # keeps their ids theirs

    def note(path: str, module: torch.nn.Module, inputs: object, outputs: list[torch.Tensor]) -> None:
        output = outputs[0]
        given = next((t for t in flat_tensors(inputs) if t.is_floating_point()), None)
        before = found.pop(path, None)
        found[path] = ModuleValue(
            path,
            type(module).__name__,
            output.detach().numpy().astype(np.float64 if output.dtype == torch.float64 else np.float32),
            owners.get(id(given)) if given is not None else None,
            given is not None and given.shape == output.shape and torch.equal(given, output),
            1 + (before.calls if before is not None else 0),
            any(other is not output and other.shape == output.shape for other in outputs),
        )
        if id(output) not in owners:
            held.append(output)
            owners[id(output)] = path

    with observed(model if model is not None else reference.model, note):
        outputs = reference.run(feeds, model)
    return found, outputs


@dataclass
class Observing:
    """A call that gives, after its own outputs, what the modules at `paths` gave last: to capture both.

    Of modules that give one and the same tensor it gives that once. After a call, `places` says for each module which
    of the results is its.
    """

    call: Call
    paths: list[str]
    places: dict[str, int] = field(default_factory=dict)

    def __call__(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> object:
        last: dict[str, torch.Tensor] = {}
        with observed(model, lambda path, module, arguments, given: last.__setitem__(path, given[0])):
            results = flat_tensors(self.call(model, inputs))
        place_of = {id(result): place for place, result in enumerate(results)}
        self.places = {}
        for path in self.paths:
            if path not in last:
                continue
            if id(last[path]) not in place_of:
                place_of[id(last[path])] = len(results)
                results.append(last[path])
            self.places[path] = place_of[id(last[path])]
        return results


Note = Callable[[str, torch.nn.Module, object, list[torch.Tensor]], None]


@contextlib.contextmanager
def observed(model: torch.nn.Module, note: Note) -> Iterator[None]:
    """Call `note(path, module, (args, kwargs), tensors)` after every call of a submodule that gives float tensors."""
    handles = []

    def hook(path: str) -> Callable[..., None]:
        def after(module: torch.nn.Module, args: object, kwargs: object, output: object) -> None:
            tensors = [tensor for tensor in flat_tensors(output) if tensor.is_floating_point()]
            if tensors:
                note(path, module, (args, kwargs), tensors)

        return after

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_hook(hook(path), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
