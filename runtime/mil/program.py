"""A Core ML ML Program loaded from an `.mlpackage`, executed with numpy in its declared types.

What runs here are the program's declared semantics: every value in the dtype the program declares, arithmetic in fp32,
one rounding per operation. Core ML treats declared types as a minimum precision and does not document its order of
summation, so a device may differ in the last bits. Say "executed by palmtop's interpreter", not "Core ML".
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from .defaults import check_default_shapes
from .execute import Observer, Run, run_block
from .features import Feature, feed, read_feature
from .images import tensor_to_image
from .package import Package
from .plan import Compiler, OperationInfo, Plan, state_types
from .state import Cell, State
from .types import PUBLIC, StateType, TensorType, Type


class Program:
    """One function of a package, ready to predict.

    Attributes:
        inputs, outputs: name -> shape, or None when a dimension is flexible (or the output is not a tensor).
        input_features, output_features, state_features: name -> `Feature`: dtype, flexible dimensions, colour space.
        operations: every operation in order of the file, with its types and what the converter recorded of its source.
        function: the name of the loaded function; `functions`: all those in the package.
        opset: e.g. "CoreML8"; `metadata`: the user-defined strings of the package.
    """

    def __init__(self, package: Package, function: str | None = None, precision: str = "declared") -> None:
        _check_precision(precision)
        self.path = package.path
        self.precision = precision
        spec = package.spec
        self.specification_version = int(spec.specificationVersion)
        self.functions = sorted(spec.mlProgram.functions)
        self.function, description = _choose(spec, function)
        proto = spec.mlProgram.functions[self.function]
        if proto.opset not in proto.block_specializations:
            raise DamagedError(f"function {self.function}: has no block for its opset {proto.opset!r}")
        self.opset = str(proto.opset)
        self.metadata = dict(spec.description.metadata.userDefined)
        self._plan = Compiler(package, self.opset).compile(proto)
        self._constants: list[Any] | None = None
        self._lock = threading.Lock()
        types = {name: type for name, (_, type) in self._plan.inputs.items()}
        self.input_features = _features(description.input, types)
        self.state_features = _features(description.state, types)
        self.output_features = _features(
            description.output, dict(zip(self._plan.output_names, self._plan.output_types, strict=True))
        )
        _check_interface(self._plan, self.input_features | self.state_features, self.output_features)
        check_default_shapes(self._plan, self.input_features)

    @classmethod
    def load(cls, path: str | Path, function: str | None = None, precision: str = "declared") -> Program:
        """Open the `.mlpackage` at `path` and compile one function of it (default: the package's own default).

        Weights are mapped, and decoded at the first prediction. `precision="fp32"` makes predictions leave out the
        rounding of values declared fp16. Raises RequestError (no such file or function), DamagedError (truncated or
        altered package), UnsupportedError (not an ML Program, unknown operation or opset, default shapes that do not
        fit the program).
        """
        return cls(Package(path), function, precision)

    @property
    def inputs(self) -> dict[str, tuple[int, ...] | None]:
        return {name: feature.fixed_shape for name, feature in self.input_features.items()}

    @property
    def outputs(self) -> dict[str, tuple[int, ...] | None]:
        return {name: _returned_shape(feature) for name, feature in self.output_features.items()}

    @property
    def operations(self) -> tuple[OperationInfo, ...]:
        return self._plan.operations

    def new_state(self) -> State:
        """Zeroed buffers for every state of the program, to be passed to `predict` and carried between calls."""
        return State({name: Cell(name, type) for name, type in state_types(self._plan).items()})

    def predict(
        self,
        feeds: Mapping[str, Any],
        state: State | None = None,
        observer: Observer | None = None,
        precision: str | None = None,
    ) -> dict[str, Any]:
        """Execute the program.

        Args:
            feeds: name -> array (or PIL image for an image input) of an allowed shape and a compatible dtype.
            state: from `new_state`, required when the program has states; updated in place.
            observer: called with (value name, operation type, value) for every operation, constants excepted. Values
                declared fp16 are shown as float32 arrays of the rounded numbers; they must not be written to.
            precision: "declared", or "fp32" to leave out the rounding of values declared fp16; default as loaded.

        Returns:
            name -> numpy array in the declared dtype (fp16 as float32 with precision="fp32"); an image as uint8
            (height, width, 3) in RGB order or (height, width); for classifiers the label (str or int) and a dict
            label -> probability.

        Raises:
            RequestError: an input or the state is missing, unknown, or of a wrong dtype or (ShapeError) shape.
            ExecutionError: an operation cannot be computed on these values (a RequestError and a RuntimeError).
        """
        wide = _check_precision(precision or self.precision) == "fp32"
        entering = self._enter(feeds, state)
        with np.errstate(all="ignore"):  # overflow and NaN are results here, not accidents
            frame = self._template().copy()
            for name, value in entering.items():
                slot, type = self._plan.inputs[name]
                if isinstance(type, TensorType) and type.dtype == "fp16" and not wide:
                    value = value.astype(np.float16).astype(np.float32)
                frame[slot] = value
            values = run_block(self._plan.body, Run(frame, wide, observer))
        kept = [*entering.values(), *(cell.value for cell in state or ())]
        results = {}
        for name, type, value in zip(self._plan.output_names, self._plan.output_types, values, strict=True):
            feature = self.output_features[name]
            if feature.kind == "image":
                results[name] = tensor_to_image(name, value, feature.color_space or "RGB")
            elif feature.kind == "label" and isinstance(value, np.ndarray):
                results[name] = value.item()
            else:
                results[name] = _leave(value, type, wide, kept)
        return results

    def _template(self) -> list[Any]:
        """A frame with every constant in place, decoded and decompressed once."""
        with self._lock:
            if self._constants is None:
                _keep_freed_memory()
                frame: list[Any] = [None] * self._plan.slots
                for slot, read in self._plan.constants.items():
                    frame[slot] = read()
                self._constants = frame
                self._plan.constants.clear()
            return self._constants

    def _enter(self, feeds: Mapping[str, Any], state: State | None) -> dict[str, Any]:
        if not isinstance(feeds, Mapping):
            raise RequestError(f"feeds must map input names to arrays, not be a {feeds.__class__.__name__}")
        if state is not None and not isinstance(state, State):
            raise RequestError(f"state must be what program.new_state() gives, not a {state.__class__.__name__}")
        unknown = [name for name in feeds if name not in self.input_features]
        if unknown:
            raise RequestError(
                f"the model has no input {unknown[0]!r}; its inputs are {', '.join(self.input_features)}"
            )
        values: dict[str, Any] = {}
        for name, feature in self.input_features.items():
            if name in feeds:
                values[name] = feed(feature, feeds[name])
            elif feature.optional and feature.default is not None and feature.default_shape is not None:
                values[name] = feed(feature, np.full(feature.default_shape, feature.default))
            else:
                raise RequestError(f"input {name} is missing; expected {feature.dtype} {feature.describe_shape()}")
        expected = state_types(self._plan)
        if expected and state is None:
            raise RequestError(f"the model has states ({', '.join(expected)}): pass state=program.new_state()")
        for name, type in expected.items():
            assert state is not None
            values[name] = state.cell(name, type)
        return values


def _returned_shape(feature: Feature) -> tuple[int, ...] | None:
    shape = feature.fixed_shape
    if feature.kind == "image" and shape is not None and len(shape) == 4:
        return shape[2:] if shape[1] == 1 else (*shape[2:], shape[1])
    return shape if feature.kind == "tensor" else None


def _keep_freed_memory() -> None:
    """Have the C library keep freed arrays for the next ones instead of giving their pages back to the system.

    glibc does so for blocks up to the size of the largest one that was ever freed (at most 32 MiB): its "dynamic mmap
    threshold", mallopt(3). One such block, never touched, is enough. Without it every intermediate result of more than
    128 KiB is made of new pages: 7,000 page faults and a quarter of the time of a MiniLM prediction.
    """
    np.empty((32 << 20) - 8192, np.uint8)


def _check_precision(precision: str) -> str:
    if precision not in ("declared", "fp32"):
        raise RequestError(f'precision {precision!r}: give "declared" or "fp32"')
    return precision


def _choose(spec: Any, wanted: str | None) -> tuple[str, Any]:
    """The function to load and the message that describes its interface."""
    functions, description = spec.mlProgram.functions, spec.description
    if description.functions:
        described = {f.name: f for f in description.functions}
        name = wanted or description.defaultFunctionName
        if name in described and name in functions:
            return name, described[name]
    else:
        name = wanted or ("main" if "main" in functions or len(functions) != 1 else next(iter(functions)))
        if name in functions:
            return name, description
    if wanted is None:
        raise DamagedError(f"the package's default function {name!r} is missing; it has {sorted(functions)}")
    raise RequestError(f"the package has no function {wanted!r}; it has {', '.join(sorted(functions))}")


def _features(protos: Any, types: dict[str, Type]) -> dict[str, Feature]:
    result = {}
    for proto in protos:
        declared = types.get(proto.name)
        result[proto.name] = read_feature(proto, declared.wrapped if isinstance(declared, StateType) else declared)
    return result


def _check_interface(plan: Plan, inputs: dict[str, Feature], outputs: dict[str, Feature]) -> None:
    for names, described, what in ((plan.inputs, inputs, "input"), (plan.output_names, outputs, "output")):
        for name in set(names) ^ set(described):
            raise DamagedError(f"{what} {name} is not in both the program and its description: the model is altered")


def _leave(value: Any, type: Type, wide: bool, kept: list[Any]) -> Any:
    """A value as callers get it: in the public dtype, in memory of its own."""
    if not isinstance(type, TensorType) or type.dtype == "string":
        return value
    array = np.asarray(value)
    if not wide and array.dtype != PUBLIC[type.dtype]:
        return array.astype(PUBLIC[type.dtype])
    if array.base is not None or not array.flags.writeable or any(array is k for k in kept):
        return array.copy()
    return array
