"""A plan's integers in a Core ML program: `constexpr` weights, and layers whose inputs are rounded to 8 bits.

coremltools' passes see an ordinary fp32 program whose weights have the values that the integers stand for: they fuse,
transpose and cast those as always. Only then, every constant that equals a quantized weight (in either layout, in fp32
or rounded to fp16) is replaced by the operation that makes it from the integers, so that no pass can fold or round
those. Converting with `constexpr` weights from the start would keep passes from recognising layers, and slow them down.

Scales have the type that the weight has in the program, as Core ML wants it. Where that is fp16, a scale is off by at
most 2^-11 of itself, as if the layer's result had been rounded to fp16 once more; the scales of 4-bit blocks, of 8
significant bits, are not off at all. Layers whose scales are too small for that (below 2^-14, fp16 loses digits) or too
large are computed in fp32 (`fp32_readers`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Block, Operation, Program, Var, types
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil.block import Function
from coremltools.optimize._utils import pack_elements_into_bits

from ...quantize.weights import QuantizedWeight
from ...runtime.errors import RequestError
from ..modules import user_path
from .coreml_schemes import value_names

Range = tuple[float, float]

# The error that fp16 scales may bring to a weight as a whole, relative: some three times the usual.
_SCALE_ERROR = 2.0**-10
# The input of an operation that reads a weight as its other factor.
_OTHER_INPUT = {"linear": "x", "conv": "x", "matmul": "x"}


class Weights:
    """The quantized weights of a model, found again by their values.

    names: parameter -> what its weight is called in the program; `__transposed` follows where it lies as (columns,
        rows).
    """

    def __init__(self, quantized: Mapping[str, QuantizedWeight]) -> None:
        self.quantized = quantized
        self.names = value_names(quantized)
        self._sizes = {weight.integers.numel() for weight in quantized.values()}
        self._places: dict[np.dtype, dict[tuple, tuple[str, bool]]] = {}

    def find(self, value: np.ndarray) -> tuple[str, bool] | None:
        """The parameter whose weight this is, and whether it lies as (columns, rows) here."""
        if value.size not in self._sizes or value.dtype not in (np.float16, np.float32):
            return None
        if value.dtype not in self._places:
            self._places[value.dtype] = self._places_of(value.dtype)
        return self._places[value.dtype].get(_key(value))

    def _places_of(self, dtype: np.dtype) -> dict[tuple, tuple[str, bool]]:
        """By shape and digest, so that dense weights need not be kept."""
        straight: dict[tuple, tuple[str, bool]] = {}
        turned: dict[tuple, tuple[str, bool]] = {}
        for name, weight in self.quantized.items():
            matrix = dataclasses.replace(weight, transposed=False, shape=tuple(weight.integers.shape)).dequantize()
            with np.errstate(over="ignore"):
                dense = matrix.numpy().astype(dtype)
            straight.setdefault(_key(_laid(dense, weight, False)), (name, False))
            if len(weight.shape) == 2:
                turned.setdefault(_key(dense.T), (name, True))
        return turned | straight


def _key(value: np.ndarray) -> tuple:
    return value.shape, hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest()


def skipped_passes(quantized: Mapping[str, QuantizedWeight]) -> set[str]:
    """Passes that would multiply a normalisation into the quantized weights of the convolution before it."""
    if any(len(weight.shape) > 2 for weight in quantized.values()):
        return {"common::fuse_conv_batchnorm", "common::fuse_conv_scale"}
    return set()


# --- weights ---------------------------------------------------------------------------------------------------------


def fp32_readers(program: Program, weights: Weights) -> set[str]:
    """Names of the operations whose quantized weight has scales that fp16 cannot hold. Before the cast to fp16."""
    found = set()
    for operation in _constants(program):
        place = weights.find(_value(operation))
        if place is not None and not fits_half(weights.quantized[place[0]]):
            found |= {reader.name for reader in operation.outputs[0].child_ops}
    return found


def fits_half(weight: QuantizedWeight) -> bool:
    """Whether integers times scales in fp16 still are the weight, up to the error that fp16 always brings."""
    exact = weight.dequantize()
    palette = None if weight.palette is None else weight.palette.half().float()
    half = dataclasses.replace(weight, scales=weight.scales.half().float(), palette=palette).dequantize().half().float()
    return bool((half - exact).norm() <= _SCALE_ERROR * exact.norm())  # infinite or NaN is not


def store_integers(program: Program, weights: Weights) -> dict[str, str]:
    """Replace weights by their integers, after all passes.

    Returns:
        name of each such value in the program -> parameter.
    """
    stored: dict[str, str] = {}
    for function in program.functions.values():
        made: dict[tuple[str, bool, Any], Var] = {}
        for operation in list(_constants_of(function)):
            place = weights.find(_value(operation))
            if place is None:
                continue
            old, block = operation.outputs[0], operation.enclosing_block
            key = (*place, old.dtype)
            if key not in made:
                name = weights.names[place[0]] + ("__transposed" if place[1] else "")
                while name in stored:  # one use in fp32 beside others in fp16
                    name += "__again"
                made[key] = _constexpr(function, weights.quantized[place[0]], place[1], operation, name)
                stored[name] = place[0]
            block.replace_uses_of_var_after_op(anchor_op=None, old_var=old, new_var=made[key], force_replace=True)
            block.remove_ops([operation])
    return stored


def _constexpr(function: Function, weight: QuantizedWeight, transposed: bool, like: Operation, name: str) -> Var:
    """The weight as an operation on its integers, at the head of the function, so that all of it can read the value."""
    dtype = np.float16 if like.outputs[0].dtype == types.fp16 else np.float32
    with function, mb.set_before_op(function.operations[0]):
        make = _scaled if weight.palette is None else _picked
        made = make(weight, transposed, dtype, function.opset_version.value >= _IOS18, name)
    _mark(made.op, like)
    return made


def _scaled(weight: QuantizedWeight, transposed: bool, dtype: Any, modern: bool, name: str) -> Var:
    """Integers, less a zero point, times a scale."""
    scales, zeros = weight.scales.numpy().astype(dtype), None
    if weight.zero_points is not None:
        zeros = weight.zero_points.numpy()
    if weight.scheme.granularity == "tensor":
        scales, zeros = scales[:1], None if zeros is None else zeros[:1]
    integers = _laid(weight.integers.numpy(), weight, transposed)
    scales = _per_block(scales, weight, transposed)
    zeros = None if zeros is None else _per_block(zeros, weight, transposed)
    if modern:
        kind = types.nptype_from_builtin(types.int8 if weight.scheme.bits == 8 else types.int4)
        offset = {} if zeros is None else {"offset": zeros.astype(kind)}
        return mb.constexpr_blockwise_shift_scale(data=integers.astype(kind), scale=scales, **offset, name=name)
    zeros = np.zeros(scales.shape, np.int8) if zeros is None else zeros
    shape: tuple[int, ...] = () if scales.size == 1 else (-1,)
    return mb.constexpr_affine_dequantize(
        quantized_data=integers,
        scale=scales.reshape(shape),
        zero_point=zeros.reshape(shape),
        axis=np.int32(1 if transposed else 0),
        name=name,
    )


def _picked(weight: QuantizedWeight, transposed: bool, dtype: Any, modern: bool, name: str) -> Var:
    """Places in tables, each of which some neighbouring rows share."""
    assert weight.palette is not None
    tables, bits = weight.palette.numpy().astype(dtype), weight.scheme.bits
    indices = _laid(weight.integers.numpy(), weight, transposed)
    if modern:
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        groups = [len(tables) if axis == (1 if transposed else 0) else 1 for axis in range(indices.ndim)]
        return mb.constexpr_lut_to_dense(indices=indices.astype(kind), lut=tables.reshape(*groups, -1, 1), name=name)
    return mb.constexpr_lut_to_dense(
        indices=pack_elements_into_bits(indices, bits),
        lut=tables.reshape(-1),
        shape=np.array(indices.shape, np.uint32),
        name=name,
    )


def _laid(matrix: np.ndarray, weight: QuantizedWeight, transposed: bool) -> np.ndarray:
    """A matrix (rows, columns) as the program has the weight."""
    if transposed:
        return np.ascontiguousarray(matrix.T)
    return matrix.reshape(weight.shape) if len(weight.shape) > 2 else matrix


def _per_block(matrix: np.ndarray, weight: QuantizedWeight, transposed: bool) -> np.ndarray:
    """A matrix (rows, blocks) with the axes of the weight."""
    if transposed:
        return np.ascontiguousarray(matrix.T)
    return matrix.reshape(*matrix.shape, *[1] * max(len(weight.shape) - 2, 0))


_IOS18 = 9  # specification version


# --- activations -----------------------------------------------------------------------------------------------------


def round_inputs(
    program: Program, weights: Weights, stored: Mapping[str, str], ranges: Mapping[str, Sequence[float]]
) -> None:
    """Put `quantize` and `dequantize` before every layer whose scheme has static activations.

    They stand where coremltools' own `linear_quantize_activations` has them, which Core ML recognises.

    Args:
        stored: from `store_integers`. ranges: parameter, as the user's model names it -> least and greatest input.
    """
    for function in program.functions.values():
        rounded: dict[tuple[str, Range], Var] = {}
        for operation in list(function.operations):
            parameter = next((stored[var.name] for var in _inputs(operation) if var.name in stored), None)
            if parameter is None or weights.quantized[parameter].scheme.activations != "static":
                continue
            if operation.op_type not in _OTHER_INPUT:
                continue  # a table is read, not multiplied
            source = operation.inputs[_OTHER_INPUT[operation.op_type]]
            if user_path(parameter) not in ranges:
                raise RequestError(
                    f"{user_path(parameter)}: static activations need the range of the layer's input. "
                    "Calibrate first (export.targets.coreml_calibrate.calibrated)."
                )
            low, high = map(float, ranges[user_path(parameter)])
            key = (source.name, (low, high))
            if key not in rounded:
                rounded[key] = _rounded(function, source, low, high, operation)
            with function:
                operation.set_inputs(**{_OTHER_INPUT[operation.op_type]: rounded[key]})


def integer_grid(low: float, high: float, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale (of `dtype`) and zero point (int8) with which -128..127 spans a range and 0 is a whole number.

    Raises:
        RequestError: the range is not finite, or ends before it starts.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise RequestError(f"No range of inputs: {low} .. {high}. Calibrate again, on data without NaN.")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.array((high - low) / 255, dtype)
    if float(scale) * 255 < high - low:  # rounded down
        scale = np.nextafter(scale, np.array(np.inf, dtype))
    if not np.isfinite(scale):
        raise RequestError(f"Inputs from {low} to {high} are beyond what the layer is computed in.")
    if scale == 0:
        scale = np.ones((), dtype)
    return scale, np.array(np.clip(np.rint(-128 - low / float(scale)), -128, 127), np.int8)


def _rounded(function: Function, source: Var, low: float, high: float, reader: Operation) -> Var:
    scale, zero_point = integer_grid(low, high, np.float16 if source.dtype == types.fp16 else np.float32)
    with function, mb.set_before_op(reader):
        whole = mb.quantize(
            input=source, scale=scale, zero_point=zero_point, output_dtype="int8", name=f"{source.name}_quantized"
        )
        result = mb.dequantize(input=whole, scale=scale, zero_point=zero_point, name=f"{source.name}_rounded")
    _mark(whole.op, reader)
    _mark(result.op, reader)
    return result


# --- programs --------------------------------------------------------------------------------------------------------


def _constants(program: Program) -> Iterator[Operation]:
    for function in program.functions.values():
        yield from _constants_of(function)


def _constants_of(block: Block) -> Iterator[Operation]:
    for operation in list(block.operations):
        for inner in operation.blocks:
            yield from _constants_of(inner)
        if operation.op_type == "const" and isinstance(_value(operation), np.ndarray):
            yield operation


def _value(operation: Operation) -> Any:
    return operation.outputs[0].val


def _inputs(operation: Operation) -> list[Var]:
    return [] if operation.op_type.startswith("constexpr_") else operation.get_flattened_inputs()


def _mark(operation: Operation, like: Operation) -> None:
    """Have an operation, and constants made for it, come from where another one came from."""
    for made in (operation, *(var.op for var in operation.get_flattened_inputs() if var.op is not None)):
        if not made.scopes or made is operation:
            made.scopes = dict(like.scopes)
