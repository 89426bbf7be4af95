"""The methods of a model, captured: one program for a model that is called once, one or two for one that generates."""

from __future__ import annotations

import dataclasses

from ..runtime.errors import UnsupportedError
from ..runtime.manifest import Dim
from .capture import Captured, Method, capture
from .rotary import frequencies_as_they_are
from .subject import GROWING, Part, Subject


def capture_subject(subject: Subject) -> Captured:
    """Capture the subject's model, called once; inputs that its graph never reads are left out."""
    return _capture_part(subject, subject.whole)


def capture_methods(subject: Subject, cache: str = GROWING) -> list[Captured]:
    """Capture what a target that keeps a cache so is made of, one program a method."""
    return [_capture_part(subject, part) for part in subject.methods(cache)]


def _capture_part(subject: Subject, part: Part) -> Captured:
    with frequencies_as_they_are(subject.reference.model):
        return _captured(subject, part)


def _captured(subject: Subject, part: Part) -> Captured:
    inputs = part.inputs
    while True:
        example = {spec.name: part.example[spec.name] for spec in inputs}
        method = Method(subject.reference.model, part.call)
        captured = capture(method, example, inputs, part.outputs, trace=subject.trace)
        if part.widen is not None and any((dim.min or 0) > 0 for dim in _axes(captured, "past")):
            part.widen()  # sinusoids of M2M100: the traced size of its table stood for the greatest sum of both axes
            captured = capture(method, example, inputs, part.outputs, trace=subject.trace)
        read = {node.name for node in captured.program.graph.nodes if node.op == "placeholder" and node.users}
        used = tuple(spec for spec in inputs if spec.name in read)
        if len(used) == len(inputs) or not used:
            _check_free(subject, part, captured)
            return dataclasses.replace(captured, method=part.method, caches=part.caches, told=part.told)
        inputs = used


def _check_free(subject: Subject, part: Part, captured: Captured) -> None:
    """Code that runs token by token in Python is captured for one length; no text can be generated with that."""
    for symbol in part.free:
        if all(dim.constant is not None for dim in _axes(captured, symbol)):
            raise UnsupportedError(
                f"{type(subject.reference.model).__name__} cannot be captured for any size of the axis {symbol}: its "
                "code decides in Python by that size, as where it goes through a sequence token by token.\n"
                "Remedy: export it for a task that is called once (--task feature-extraction --lengths N)."
            )


def _axes(captured: Captured, symbol: str) -> list[Dim]:
    return [dim for spec in captured.inputs for dim in spec.dims if dim.symbol == symbol]
