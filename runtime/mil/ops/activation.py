"""Activations. Formulas: coremltools' operation definitions (iOS15/activation.py, iOS17/activation.py)."""

from __future__ import annotations

import numpy as np

from .. import mathematics
from ..registry import op


def _by_channel(parameter: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A (C,) parameter shaped to broadcast over dimension 1 of `x`."""
    parameter = np.asarray(parameter)
    if parameter.ndim != 1 or x.ndim < 2 or parameter.size not in (1, x.shape[1]):
        raise ValueError(f"one parameter per channel needed, got {parameter.shape} for {x.shape}")
    return parameter.reshape((1, -1) + (1,) * (x.ndim - 2))


@op("relu", exact=True)
def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)"""
    return np.maximum(x, np.float32(0))


@op("relu6", exact=True)
def relu6(x: np.ndarray) -> np.ndarray:
    """min(max(x, 0), 6)"""
    return np.minimum(np.maximum(x, np.float32(0)), np.float32(6))


@op("clamped_relu")
def clamped_relu(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """min(beta, x) for x >= 0, min(beta, alpha * x) below."""
    return np.minimum(np.where(x >= 0, x, alpha * x), beta)


@op("leaky_relu")
def leaky_relu(x: np.ndarray, alpha: float) -> np.ndarray:
    """x for x >= 0, alpha * x below."""
    return np.where(x >= 0, x, alpha * x)


@op("thresholded_relu", exact=True)
def thresholded_relu(x: np.ndarray, alpha: float) -> np.ndarray:
    """x where x >= alpha, else 0."""
    return np.where(x >= alpha, x, np.float32(0))


@op("prelu")
def prelu(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """x where positive, alpha of its channel times x elsewhere."""
    return np.where(x > 0, x, _by_channel(alpha, x) * x)


@op("elu", pointwise=True)
def elu(x: np.ndarray, alpha: float) -> np.ndarray:
    """x where positive, alpha * (exp(x) - 1) elsewhere."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@op("gelu", pointwise=True)
def gelu(x: np.ndarray, mode: str = "EXACT") -> np.ndarray:
    """Gaussian error linear unit.

    Apple does not say how its hardware approximates each mode; the documented formulas are computed in fp32.
    """
    if mode == "EXACT":
        return mathematics.gelu(x)
    if mode == "TANH_APPROXIMATION":
        inner = x * x
        inner *= np.float32(0.044715)
        inner += np.float32(1)
        inner *= x
        inner *= np.float32(np.sqrt(2 / np.pi))
        inner = np.tanh(inner)
        inner += np.float32(1)
        inner *= x
        inner *= np.float32(0.5)
        return inner
    if mode == "SIGMOID_APPROXIMATION":
        return x * mathematics.sigmoid(np.float32(1.702) * x)
    raise ValueError(f"unknown mode {mode!r}")


@op("linear_activation")
def linear_activation(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """alpha * x + beta"""
    return alpha * x + beta


@op("scaled_tanh", pointwise=True)
def scaled_tanh(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """alpha * tanh(beta * x)"""
    return alpha * np.tanh(beta * x)


@op("sigmoid", pointwise=True)
def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))"""
    return mathematics.sigmoid(x)


@op("sigmoid_hard")
def sigmoid_hard(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """min(max(alpha * x + beta, 0), 1)"""
    return np.clip(alpha * x + beta, 0, 1)


@op("silu", pointwise=True)
def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)"""
    return mathematics.sigmoid(x) * x


@op("softplus", pointwise=True)
def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x))"""
    return mathematics.softplus(x)


@op("softplus_parametric")
def softplus_parametric(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """alpha * log(1 + exp(beta * x)), with one alpha and beta per channel."""
    return _by_channel(alpha, x) * mathematics.softplus(_by_channel(beta, x) * x)


@op("softsign", pointwise=True)
def softsign(x: np.ndarray) -> np.ndarray:
    """x / (1 + |x|)"""
    return x / (1 + np.abs(x))


@op("softmax")
def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(x) / sum of exp(x) along `axis`.

    The maximum is subtracted first. A row of nothing but -inf therefore gives NaN, as PyTorch and the formula do; Apple
    does not document what its hardware gives.
    """
    y = x - np.max(x, axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= np.sum(y, axis=axis, keepdims=True)
    return y
