"""A module of the user's as the subject of an export (see `export_module`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..runtime.errors import RequestError
from ..runtime.golden import GoldenCase
from ..runtime.manifest import Dim, ModelSource, TensorSpec
from ..runtime.verify import Case
from .capture import call_by_name, flat_tensors, trace_module
from .reference import Reference
from .subject import Subject

Inputs = Mapping[str, torch.Tensor]
Axes = Mapping[str, Mapping[int, Dim | str]]


def module_subject(
    module: torch.nn.Module,
    example_inputs: Inputs,
    *,
    name: str,
    dynamic_axes: Axes | None = None,
    output_names: Sequence[str] | None = None,
    verify_inputs: Sequence[Inputs] | None = None,
    license: str | None = None,
) -> Subject:
    """A module with named example inputs. Arguments as in `export_module`.

    Raises:
        RequestError: inputs, names or axes that do not fit the module or each other.
    """
    module.eval().requires_grad_(False)
    inputs = _input_specs(example_inputs, dynamic_axes or {})
    example = {spec.name: example_inputs[spec.name].detach().clone().contiguous() for spec in inputs}
    results = _called(module, example)
    names = _output_names(output_names, len(results), list(example))
    outputs = tuple(
        TensorSpec(key, _dtype(value), tuple(Dim(size=n) for n in value.shape))
        for key, value in zip(names, results, strict=True)
    )
    reference = Reference(module, call_by_name, outputs)
    if verify_inputs is not None and not verify_inputs:
        raise RequestError("verify_inputs is empty: leave it out, or give inputs to verify on.")
    for index, entry in enumerate(verify_inputs or ()):
        _check_inputs(entry, inputs, f"verify_inputs[{index}]")
    others = [dict(entry) for entry in verify_inputs] if verify_inputs else _variations(example, inputs)

    def cases(most: int | None = None) -> list[Case]:
        found = []
        for index, entry in enumerate(others):
            _called(module, entry)  # for a message that a user of the module understands
            found.append(reference.case(f"input {index}", _arrays(entry), most=most))
        return found

    def golden() -> list[GoldenCase]:
        return [
            GoldenCase(case.name, case.feeds, {key: rows[0] for key, rows in case.expected.items()})
            for case in cases(most=512)[:3]
        ]

    def calibration(path: Path | None) -> list[dict[str, np.ndarray]]:
        if path is not None:
            raise RequestError(
                "A module is calibrated on verify_inputs or variations of the example; it takes no file."
            )
        return [_arrays(entry) for entry in (example, *others)]

    return Subject(
        info=ModelSource(name, None, _state_sha256(module), type(module).__name__, None, license),
        task="module",
        reference=reference,
        inputs=inputs,
        example=example,
        trace=trace_module,
        cases=cases,
        golden=golden,
        calibration=calibration,
        notes=() if dynamic_axes else ("All axes are constant: name the ones that vary with dynamic_axes.",),
    )


def _called(module: torch.nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    try:
        with torch.no_grad():
            results = flat_tensors(call_by_name(module, dict(inputs)))
    except Exception as error:
        given = ", ".join(f"{key} {list(value.shape)} {_dtype(value)}" for key, value in inputs.items())
        lines = str(error).strip().splitlines() or [""]
        raise RequestError(
            f"{type(module).__name__} cannot be called with {given}: {type(error).__name__}: {lines[0][:300]}\n"
            "Remedy: give inputs that it takes, by the names of its parameters; for an axis that varies within limits, "
            "a Dim with min and max in dynamic_axes."
        ) from error
    if not results:
        raise RequestError(f"{type(module).__name__} gives no tensor.")
    return results


def _input_specs(example: Inputs, axes: Axes) -> tuple[TensorSpec, ...]:
    if not example:
        raise RequestError("example_inputs is empty: name at least one input.")
    for key, value in example.items():
        if not isinstance(value, torch.Tensor):
            raise RequestError(f"Example input '{key}' is a {type(value).__name__}, not a tensor.")
        if not key.isidentifier() or key == "self":
            raise RequestError(f"Input name '{key}' is not one that all formats take: use letters, digits and _.")
    unknown = [key for key in axes if key not in example]
    if unknown:
        raise RequestError(f"dynamic_axes names {', '.join(unknown)}; the inputs are {', '.join(example)}.")
    specs = tuple(_input_spec(key, value, axes.get(key, {})) for key, value in example.items())
    _check_inputs(example, specs, "example_inputs")
    return specs


def _input_spec(name: str, value: torch.Tensor, axes: Mapping[int, Dim | str]) -> TensorSpec:
    wrong = [str(axis) for axis in axes if axis not in range(value.dim())]
    if wrong:
        raise RequestError(f"dynamic_axes names axis {', '.join(wrong)} of '{name}', which has {value.dim()} axes.")
    dims = []
    for axis, size in enumerate(value.shape):
        given = axes.get(axis, Dim(size=int(size)))
        dim = Dim(symbol=given, min=1, max=None) if isinstance(given, str) else given
        if axis in axes and not dim.symbol:
            raise RequestError(f"dynamic_axes: axis {axis} of '{name}' needs a symbol, a name for what it counts.")
        dims.append(dim)
    return TensorSpec(name, _dtype(value), tuple(dims))


def _check_inputs(given: Inputs, specs: Sequence[TensorSpec], what: str) -> None:
    """Names, dtypes and sizes of inputs are what the specs say, and axes of one symbol have one size."""
    names = [spec.name for spec in specs]
    if set(given) != set(names):
        raise RequestError(f"{what} has {', '.join(given) or 'nothing'}; the module's inputs are {', '.join(names)}.")
    sizes: dict[str, int] = {}
    for spec in specs:
        value = given[spec.name]
        if _dtype(value) != spec.dtype:
            raise RequestError(f"{what}: '{spec.name}' is {_dtype(value)}, in the example {spec.dtype}.")
        fits = value.dim() == len(spec.dims) and all(
            dim.admits(size) and (not dim.symbol or sizes.setdefault(dim.symbol, size) == size)
            for dim, size in zip(spec.dims, value.shape, strict=True)
        )
        if not fits:
            dims = ", ".join(map(str, spec.dims))
            raise RequestError(f"{what}: '{spec.name}' has shape {list(value.shape)}, not [{dims}].")


def _output_names(asked: Sequence[str] | None, count: int, inputs: list[str]) -> tuple[str, ...]:
    names = tuple(asked or (("output",) if count == 1 else (f"output_{i}" for i in range(count))))
    if len(names) != count:
        raise RequestError(f"The module gives {count} tensors; {len(names)} output names were given.")
    twice = sorted({name for name in names if (*names, *inputs).count(name) > 1})
    if twice:
        raise RequestError(f"More than one input or output is called {', '.join(twice)}.")
    return names


def _variations(example: Inputs, inputs: Sequence[TensorSpec]) -> list[dict[str, torch.Tensor]]:
    """Inputs like the example but not it: values shuffled and noised, and where axes vary, other sizes of them."""
    generator = torch.Generator().manual_seed(0)
    symbols = {dim.symbol: dim for spec in inputs for dim in spec.dims if dim.symbol and not dim.is_constant}
    sizes = {
        symbol: next(example[s.name].shape[s.dims.index(dim)] for s in inputs if dim in s.dims)
        for symbol, dim in symbols.items()
    }
    found = []
    for factor in (1.0, 0.5, 2.0) if symbols else (1.0, 1.0, 1.0):
        chosen = {symbol: _admitted(dim, int(sizes[symbol] * factor)) for symbol, dim in symbols.items()}
        found.append({spec.name: _varied(example[spec.name], spec, chosen, generator) for spec in inputs})
    return found


def _admitted(dim: Dim, size: int) -> int:
    if dim.values is not None:
        return min(dim.values, key=lambda value: abs(value - size))
    return max(dim.min or 1, min(size, dim.max or size))


def _varied(
    value: torch.Tensor, spec: TensorSpec, sizes: Mapping[str, int], generator: torch.Generator
) -> torch.Tensor:
    for axis, dim in enumerate(spec.dims):
        if dim.symbol is not None and dim.symbol in sizes:
            value = value.index_select(axis, torch.arange(sizes[dim.symbol]) % value.shape[axis])
    flat = value.flatten()
    shuffled = flat[torch.randperm(flat.numel(), generator=generator)].reshape(value.shape)
    if value.is_floating_point():
        noise = torch.randn(value.shape, generator=generator).to(value.dtype)
        return 0.5 * value + 0.25 * shuffled + 0.25 * noise * (value.std() if value.numel() > 1 else 1.0)
    return shuffled


def _arrays(tensors: Inputs) -> dict[str, np.ndarray]:
    return {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _state_sha256(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
