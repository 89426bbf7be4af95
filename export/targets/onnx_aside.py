"""Large weights kept out of the way while onnxruntime converts a graph to fp16: it would hold them several times over.

The graph is converted with names of files that do not exist in place of weights; each weight is converted when it is
written, a piece at a time, by the very function that onnxruntime uses.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir

# Smaller ones stay: what is computed from their values needs them.
_LEAST_BYTES = 1 << 20
_NOWHERE = "palmtop.aside"
# How many values are converted at once.
_CHUNK = 1 << 22
# What onnxruntime's converter turns into fp16 with no more than the type of the weight changed.
_PLAIN = {"MatMul", "Gemm", "Gather", "Conv", "Add", "Mul", "Transpose"}


@contextlib.contextmanager
def weights_aside(model: onnx_ir.Model, kept: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Inside the block the large fp32 weights of a model are names only. Gives the weights, by name.

    Args:
        kept: names of nodes that stay fp32, and with them their weights.
    """
    from onnxruntime.transformers import float16

    aside: dict[str, Any] = {}
    for name, value in model.graph.initializers.items():
        weight = value.const_value
        if weight is None or weight.nbytes < _LEAST_BYTES or weight.dtype != onnx_ir.DataType.FLOAT:
            continue
        if all(node.op_type in _PLAIN and not node.domain and node.name not in kept for node in value.consumers()):
            aside[name] = weight
            value.const_value = onnx_ir.ExternalTensor(
                _NOWHERE, 0, weight.nbytes, weight.dtype, shape=onnx_ir.Shape(weight.shape.numpy()), name=name
            )
    described = float16.make_value_info_from_tensor
    # It reads the whole tensor to learn its shape.
    float16.make_value_info_from_tensor = lambda tensor: onnx.helper.make_tensor_value_info(
        tensor.name, tensor.data_type, tuple(tensor.dims)
    )
    try:
        yield aside
    finally:
        float16.make_value_info_from_tensor = described
        for name, weight in aside.items():
            model.graph.initializers[name].const_value = weight


def put_back_halved(model: onnx_ir.Model, aside: Mapping[str, Any]) -> None:
    """The weights in the converted model, in the type that it has them in now."""
    for name, weight in aside.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        if value.const_value.dtype != onnx_ir.DataType.FLOAT16:
            value.const_value = weight
            continue
        value.const_value = onnx_ir.LazyTensor(
            functools.partial(_halved_tensor, weight),
            dtype=onnx_ir.DataType.FLOAT16,
            shape=onnx_ir.Shape(weight.shape.numpy()),
            name=name,
        )


def _halved_tensor(weight: Any) -> onnx_ir.Tensor:
    return onnx_ir.Tensor(_halved(weight.numpy()))


def _halved(values: np.ndarray) -> np.ndarray:
    from onnxruntime.transformers.float16 import convert_np_to_float16

    flat = np.ascontiguousarray(values).reshape(-1)
    found = np.empty(flat.shape, np.float16)
    for start in range(0, len(flat), _CHUNK):
        found[start : start + _CHUNK] = convert_np_to_float16(flat[start : start + _CHUNK])
    return found.reshape(values.shape)
