"""Matrix products and attention. Definitions: coremltools' iOS15/linear.py, iOS17/linear.py, iOS18/transformers.py.

Sums run in fp32 in the order of the BLAS that numpy uses; Apple documents neither order nor width of accumulation.
"""

from __future__ import annotations

import numpy as np

from ..registry import op
from ..types import HELD, TensorType


@op("linear")
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x @ weight.T + bias: (..., in) with (out, in) gives (..., out)."""
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x of {x.shape} does not fit a weight of {weight.shape}")
    rows = x.reshape(-1, x.shape[-1])
    if rows.dtype.kind != "f":
        rows = rows.astype(np.float64)  # exact up to 2**53, and there is a BLAS for it
    y = np.matmul(rows, weight.T)
    if bias is not None:
        y += bias
    if x.dtype.kind != "f":
        y = y.astype(x.dtype)
    return y.reshape(*x.shape[:-1], weight.shape[0])


@op("matmul")
def matmul(
    x: np.ndarray,
    y: np.ndarray,
    transpose_x: bool = False,
    transpose_y: bool = False,
    *,
    out: tuple[TensorType, ...],
) -> np.ndarray:
    """x @ y with numpy's broadcasting; a transposition swaps the last two dimensions and leaves vectors alone.

    From iOS 17 one factor may be an integer and the other a float constant: computed in fp64, cut to whole numbers.
    """
    if transpose_x and x.ndim > 1:
        x = np.swapaxes(x, -1, -2)
    if transpose_y and y.ndim > 1:
        y = np.swapaxes(y, -1, -2)
    product = np.matmul(x, y)
    return product if out[0].is_float or product.dtype.kind != "f" else np.trunc(product).astype(HELD[out[0].dtype])


@op("einsum", variadic=("values",))
def einsum(values: tuple[np.ndarray, ...], equation: str) -> np.ndarray:
    """The Einstein sum of two tensors; dimensions of size 1 broadcast, which numpy's einsum does too."""
    left, result = equation.replace(" ", "").split("->")
    terms = left.split(",")
    if len(terms) != 2 or len(values) != 2:
        raise ValueError(f"expected two tensors and terms, got {equation!r}")
    x, y = values
    if len(terms[0]) == 4 and terms[0][3] == terms[1][1]:  # "nchw,nwhu->nchu": a product batched over n and h
        product = np.matmul(x.transpose(0, 2, 1, 3), y.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        if result == terms[0][:3] + terms[1][3]:
            return product
    return np.einsum(equation.replace(" ", ""), x, y)


@op("scaled_dot_product_attention", since="ios18")
def scaled_dot_product_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, attn_mask: np.ndarray | None = None
) -> np.ndarray:
    """softmax(query @ key^T / sqrt(E) + mask) @ value: (..., L, E), (..., S, E), (..., S, V) give (..., L, V).

    One operation, so one rounding at its end. A boolean mask keeps where it is true. Source: coremltools'
    iOS18/transformers.py, which refers to PyTorch's function of this name.
    """
    scores = np.matmul(query, np.swapaxes(key, -1, -2))
    scores *= np.float32(1 / np.sqrt(query.shape[-1]))
    if attn_mask is not None:
        if attn_mask.dtype == np.bool_:
            scores = np.where(attn_mask, scores, np.float32(-np.inf))
        else:
            scores = np.add(scores, attn_mask, out=scores if _fits(attn_mask, scores) else None)
    scores -= np.max(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = np.sum(scores, axis=-1, keepdims=True)
    result = np.matmul(scores, value)
    result /= total  # after the product: fewer divisions, and the same value up to fp32 rounding
    return result


def _fits(mask: np.ndarray, scores: np.ndarray) -> bool:
    return np.broadcast_shapes(mask.shape, scores.shape) == scores.shape
