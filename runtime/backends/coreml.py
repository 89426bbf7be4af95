"""Core ML artifacts: executed by Core ML on a Mac, by palmtop's own interpreter of ML Programs everywhere else.

The engine string says which of the two it was. On a Mac, Core ML needs `coremltools` for its Python bindings; without
it, the interpreter serves there too.
"""

from __future__ import annotations

import importlib.util
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..cause import Cause
from ..errors import DamagedError, PalmtopError
from ..explain import OUTPUT, Layer
from ..manifest import Artifact
from ..parity import Bound
from ..threads import limit_blas
from . import Backend, Contents, Rounding, Runner, Traced, Visit
from .coreml_images import with_pictures

IDENTITY_KEY = "palmtop.identity"
MODULES_KEY = "palmtop.modules"
INTERPRETER = "palmtop's interpreter of ML Programs (declared semantics)"


class InterpretedRunner:
    """An `.mlpackage` executed with numpy, in the dtypes that the program declares."""

    engine = INTERPRETER

    def __init__(self, path: Path, artifact: Artifact, threads: int | None):
        from ..mil import Program

        if threads is not None:
            limit_blas(threads)  # the interpreter computes with numpy
        self.program = Program.load(path, function=artifact.methods[artifact.method])
        self._artifact = artifact
        self.identity = self.program.metadata.get(IDENTITY_KEY)
        self._outputs = _declared_outputs(artifact, set(self.program.outputs), path)

    def new_state(self) -> Any:
        return self.program.new_state()

    def run(self, feeds: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        results = self.program.predict(with_pictures(feeds, self._artifact), state=state)
        return {name: results[name] for name in self._outputs}


class NativeRunner:
    """An `.mlpackage` executed by Core ML itself, on a Mac."""

    def __init__(self, path: Path, artifact: Artifact, threads: int | None):
        import coremltools

        self._artifact = artifact
        try:
            self._model = coremltools.models.MLModel(str(path))
        except Exception as error:  # Core ML reports as RuntimeError, ValueError and plain Exception
            raise DamagedError(f"{path} cannot be loaded by Core ML: {error}") from error
        self.engine = f"Core ML, macOS {platform.mac_ver()[0]}"
        self.identity = package_metadata(path).get(IDENTITY_KEY)
        self._outputs = _declared_outputs(
            artifact, {output.name for output in self._model.get_spec().description.output}, path
        )

    def new_state(self) -> Any:
        return self._model.make_state()

    def run(self, feeds: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        given = with_pictures(feeds, self._artifact)
        results = self._model.predict(given) if state is None else self._model.predict(given, state=state)
        return {name: results[name] for name in self._outputs}


def package_metadata(path: Path) -> dict[str, str]:
    """The user-defined metadata of an `.mlpackage`. Raises DamagedError when it is not one."""
    from ..mil.package import Package

    try:
        return dict(Package(path).spec.description.metadata.userDefined)
    except DamagedError:
        raise
    except PalmtopError as error:
        raise DamagedError(str(error)) from error


def module_of_operations(path: Path) -> dict[str, str]:
    """Value name -> path of the PyTorch module it was computed in, for the values of a Core ML program.

    The exporter records it in the package; a package from elsewhere gives an empty mapping. The model itself is "".
    """
    by_module = json.loads(package_metadata(path).get(MODULES_KEY, "{}"))
    return {name: module for module, names in by_module.items() for name in names}


def _declared_outputs(artifact: Artifact, present: set[str], path: Path) -> list[str]:
    names = [spec.name for spec in artifact.outputs]
    if not set(names) <= present:
        raise DamagedError(f"{path} has outputs {sorted(present)}; the manifest names {names}.")
    return names


def _open(path: Path, artifact: Artifact, threads: int | None) -> Runner:
    if not path.is_dir():
        raise DamagedError(f"{path} is missing from the bundle. Export it again.")
    if platform.system() == "Darwin" and importlib.util.find_spec("coremltools") is not None:
        return NativeRunner(path, artifact, threads)
    return InterpretedRunner(path, artifact, threads)


def contents(path: Path) -> Contents:
    """The operations of the package's default function, constants left out."""
    from ..mil import Program

    counts = Counter(operation.type for operation in Program.load(path).operations)
    return Contents({kind: count for kind, count in counts.most_common() if kind != "const"})


def diagnose(path: Path, artifact: Artifact, feeds: dict[str, np.ndarray], bound: Bound) -> Cause | None:
    """The operation of an fp16 program that overflows or drifts past `bound`; None when rounding is not to blame."""
    from ..mil import Program
    from ..mil.divergence import FP16_LARGEST, divergence

    program = Program.load(path, function=artifact.methods[artifact.method])
    found = divergence(program, feeds, module_of_operations(path), bound)
    first = found.first
    if first is None:
        return None
    if not first.overflows:
        detail = f"its error is {first.measure.max_error:.2g} of its scale, that of what it is computed from is not"
    elif first.peak > FP16_LARGEST:
        detail = f"it reaches {first.peak:.2g}, and fp16 ends at {FP16_LARGEST:.0f}"
    else:
        detail = "it is NaN or infinite, and finite in fp32"
    kind = "overflows" if first.overflows else "diverges"
    return Cause(first.name, first.type, first.module, kind, detail, found.overflowing)


def rounding(path: Path, artifact: Artifact, feeds: dict[str, np.ndarray], bound: Bound) -> Rounding:
    """What each module gives last, and every operation beyond the bound, against the program without rounding."""
    from ..mil import Program
    from ..mil.divergence import divergence

    program = Program.load(path, function=artifact.methods[artifact.method])
    found = divergence(program, feeds, module_of_operations(path), bound)
    last = {operation.module: operation for operation in found.operations if operation.module}
    layers: dict[str, Layer] = {}
    for operation in found.operations:
        kind = OUTPUT if operation.name in program.output_features else ""
        if kind or operation.exceeds or (operation.module and last[operation.module] is operation):
            layers[operation.name] = Layer(
                operation.module or "", kind, operation.name, operation.type, operation.measure
            )
    return tuple(layers.values()), layers[found.first.name] if found.first is not None else None


def trace(path: Path, artifact: Artifact, feeds: dict[str, np.ndarray], visit: Visit) -> None:
    """Every floating-point value of the program, as the interpreter computes it."""
    from ..mil import Program

    modules = module_of_operations(path)

    def observe(name: str, kind: str, value: object) -> None:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            visit(Traced(name, kind, modules.get(name), value))

    program = Program.load(path, function=artifact.methods[artifact.method])
    program.predict(with_pictures(feeds, artifact), observer=observe)


BACKEND = Backend(
    target="coreml",
    open=_open,
    missing=lambda: None,
    contents=contents,
    diagnose=diagnose,
    rounding=rounding,
    trace=trace,
    inner_engine=INTERPRETER,
)
