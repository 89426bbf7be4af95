"""Where an artifact parts ways with the eager model, layer by layer (`palmtop verify --explain`).

The eager model's side comes from forward hooks on the unpatched reference, and how far each layer may be from it comes,
as for outputs, from its own noise: the same layer in fp64. The artifact's side comes from its backend's `trace`. A
format whose engine shows nothing inside is lowered again, with every module's result as an output.

Which of the artifact's values is a module's is decided by where it was computed: the last operation of the module, or
of one inside it, that has the shape of the module's result. Never by which value is closest. A module that gives
several tensors of one shape is left out.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..runtime.backends import Traced, get_backend
from ..runtime.errors import RequestError
from ..runtime.explain import OUTPUT, Explanation, Layer, first_apart, unpadded
from ..runtime.manifest import Artifact, TensorSpec
from ..runtime.parity import Comparison, Measure, bound_for
from ..runtime.session import Session
from ..runtime.verify import Case
from .capture import Captured, Method, capture
from .layers import ModuleValue, Observing, module_values
from .reference import Reference
from .subject import Subject
from .targets import get_target

_IDENTITY = "0" * 64
_FLOATS = ("fp32", "fp16")  # precisions that follow from the checkpoint alone
Feeds = dict[str, np.ndarray]


@dataclass
class _Inside:
    """What was seen inside an artifact: each module's value, and every module that any value came from."""

    expected: dict[str, ModuleValue]
    matches: dict[str, Traced] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def visit(self, traced: Traced) -> None:
        path = traced.module
        while path:
            self.seen.add(path)
            module = self.expected.get(path)
            if module is not None and not module.one_of_several:
                whole = _of_shape(traced, module.value.shape)
                self.matches.update({} if whole is None else {path: whole})
            path = path.rpartition(".")[0]


def _of_shape(traced: Traced, shape: tuple[int, ...]) -> Traced | None:
    """A value of this shape, or the rows of one as a matrix (`targets/onnx_layers.py`), in it; None: another value."""
    if traced.value.shape == shape:
        return traced
    if len(shape) == 3 and traced.value.shape == (shape[0] * shape[1], shape[2]):
        return dataclasses.replace(traced, value=traced.value.reshape(shape))
    return None


def explain(
    reference: Reference, session: Session, case: Case, subject: Callable[[], Subject], against: str
) -> Explanation:
    """Compare an artifact with the eager model on one case, module by module.

    Args:
        case: padded to what the artifact takes, one row if it takes one (`runtime.verify.worst_row`).
        subject: the same model as the export sees it, asked for when the artifact has to be lowered again.
        against: what the report calls the reference.

    Raises:
        RequestError: the artifact would have to be lowered again, and its integers are not in the checkpoint.
    """
    artifact = session.artifact
    expected, outputs = module_values(reference, case.feeds)
    wide, wide_outputs = module_values(reference, case.feeds, reference.other_model(case.feeds))
    inside = _Inside(expected)
    backend = get_backend(artifact.target)
    trace = backend.trace
    actual = session.run(case.feeds)
    if trace is not None and session.path is not None:
        feeds = {spec.name: np.ascontiguousarray(case.feeds[spec.name], spec.dtype) for spec in artifact.inputs}
        trace(session.path, artifact, feeds, inside.visit)
        how = f"values inside the very file, executed by {backend.inner_engine or session.engine}"
    else:
        again = _lowered_again(subject(), artifact, case.feeds, inside)
        how = f"lowered again, as it was planned, with every module's result as an output; executed by {session.engine}"
        apart = max(_measure(name, actual[name], again[name], None, case.feeds, artifact).max_error for name in actual)
        if apart > 0.01:
            how += f". Lowered so it gives other outputs than the file (error {apart:.2g}): the file is another model"
    found = []
    merged = _merged(inside)
    for path, module in expected.items():
        traced = inside.matches.get(path)
        if traced is None or path in merged.values():
            continue
        other = merged.get(path)
        stands_for = expected[other] if other is not None else module
        measure = _measure(
            path,
            stands_for.value,
            traced.value,
            wide.get(stands_for.path, stands_for).value,
            case.feeds,
            artifact,
        )
        notes = [f"with {other}"] if other is not None else []
        notes += [f"last of {module.calls} calls"] if module.calls > 1 else []
        found.append(Layer(path, module.kind, traced.name, traced.operation, measure, ", ".join(notes)))
    for name, value in outputs.items():
        measure = _measure(name, value, actual[name], wide_outputs[name], case.feeds, artifact)
        found.append(Layer(name, OUTPUT, name, OUTPUT, measure))
    layers = tuple(found)
    matched = {*inside.matches, *merged.values()}
    unmatched = tuple(path for path, module in expected.items() if path not in matched and not module.same)
    return Explanation(artifact.target, artifact.path, case.name, against, how, layers, first_apart(layers), unmatched)


def _measure(
    name: str, expected: np.ndarray, actual: np.ndarray, exact: np.ndarray | None, feeds: Feeds, artifact: Artifact
) -> Measure:
    """How far a value is from the eager model's, with the bound that its noise and the artifact's precision give."""
    comparison, noise = Comparison(name), Comparison(name)
    expected, actual = unpadded(expected, feeds), unpadded(actual, feeds)
    comparison.add("", expected.shape, expected, actual)
    if exact is not None:
        noise.add("", expected.shape, unpadded(exact, feeds), expected)
    return comparison.measure(bound_for(artifact.precision, noise.noise()))


def _merged(inside: _Inside) -> dict[str, str]:
    """Module -> the module after it that has no operation of its own in the artifact: it was merged into the first
    (a batch norm into its convolution, say), whose value there is the second's.
    """
    readers: dict[str, list[str]] = {}
    for path, module in inside.expected.items():
        if module.source is not None and not path.startswith(f"{module.source}."):
            readers.setdefault(module.source, []).append(path)
    found: dict[str, str] = {}
    for path, module in inside.expected.items():
        source = module.source
        if path in inside.seen or module.same or source is None:
            continue
        origin = next((first for first, last in found.items() if last == source), source)
        traced = inside.matches.get(origin) if readers[source] == [path] else None
        if traced is not None and traced.value.shape == module.value.shape:
            found[origin] = path
    return found


def _lowered_again(subject: Subject, artifact: Artifact, feeds: Feeds, inside: _Inside) -> Feeds:
    """Lower with more outputs, run, and note each module's value. Gives the artifact's own outputs."""
    if artifact.precision not in _FLOATS:
        raise RequestError(
            f"{artifact.target} shows nothing of what is inside a file, and its quantized weights are not in the "
            "checkpoint that would be lowered again. Remedy: explain another target of this bundle (--target), or an "
            "export with --quantize none or fp16."
        )
    wanted = [path for path, module in inside.expected.items() if not module.same]
    captured, places = _observed_capture(subject, artifact, wanted)
    more = _with_outputs(artifact, captured)
    target = get_target(artifact.target)
    with tempfile.TemporaryDirectory(prefix="palmtop-explain-") as folder:
        target.lower(captured, more, _IDENTITY, Path(folder) / more.path)
        results = Session.open(Path(folder), more, _IDENTITY, threads=1).run(feeds)
    nodes = captured.program.graph.output_node().args[0]
    for path, place in places.items():
        node = nodes[place]
        inside.seen.add(path)
        traced = Traced(node.name, str(node.target), path, results[more.outputs[place].name])
        if traced.value.shape == inside.expected[path].value.shape:
            inside.matches[path] = traced
    return {spec.name: results[spec.name] for spec in artifact.outputs}


def _observed_capture(subject: Subject, artifact: Artifact, wanted: list[str]) -> tuple[Captured, dict[str, int]]:
    """The model captured with the results of modules as further outputs; which output is which module's."""
    call = Observing(subject.reference.call, wanted)
    names = {spec.name for spec in artifact.inputs}
    inputs = [spec for spec in subject.inputs if spec.name in names]
    example = {spec.name: subject.example[spec.name] for spec in inputs}
    captured = capture(
        Method(subject.reference.model, call),
        example,
        inputs,
        _Names([spec.name for spec in artifact.outputs], call),
        trace=subject.trace,
    )
    return captured, call.places


class _Names(Sequence[str]):
    """Names of outputs, of which how many there are is known once the model was traced."""

    def __init__(self, own: list[str], call: Observing):
        self.own, self.call = own, call

    def __len__(self) -> int:
        return max([len(self.own), *(place + 1 for place in self.call.places.values())])

    def __getitem__(self, place):
        if place >= len(self):
            raise IndexError(place)
        return self.own[place] if place < len(self.own) else f"module_{place}"


def _with_outputs(artifact: Artifact, captured: Captured) -> Artifact:
    own = {spec.name for spec in artifact.outputs}
    further = tuple(TensorSpec(spec.name, spec.dtype, spec.dims) for spec in captured.outputs if spec.name not in own)
    return dataclasses.replace(artifact, outputs=(*artifact.outputs, *further))
