"""Rounding fp32 results to fp16, the one place where a declared half precision changes a number.

Round to nearest, ties to even, subnormals kept, infinity from 65520 on: IEEE 754 binary16, which is what Apple's CPU,
GPU and Neural Engine store. Apple does not say where in an operation it rounds; here it is once, at its end.
"""

from __future__ import annotations

import numpy as np

_EXPONENT = np.uint32(0x7F800000)
_SMALLEST = np.uint32((127 - 14) << 23)  # below 2**-14 fp16 has one fixed step, 2**-24
_LARGE = np.uint32((127 + 15) << 23)  # from 2**15 on a result may overflow; infinities and NaN are above too
_ZERO = np.uint32((127 - 25) << 23)  # up to 2**-25 the result is 0
_SHIFT = np.uint32((13 << 23) + (1 << 22))
_BLOCK = 1 << 14  # floats: a block and its scratch stay in the first-level caches


def round_fp16(x: np.ndarray) -> np.ndarray:
    """float32 array of the same shape as the float32 `x`, every number representable in fp16.

    For |x| in [2**e, 2**(e+1)), adding and subtracting 1.5 * 2**(e+13) leaves x rounded to a multiple of 2**(e-10), by
    the rounding of fp32 addition itself. About four times as fast as numpy's conversion to float16 and back.
    """
    if x.size < 64:
        return x.astype(np.float16).astype(np.float32)
    flat = np.ascontiguousarray(x).reshape(-1)
    result = np.empty_like(flat)
    scratch = np.empty(min(_BLOCK, flat.size), np.uint32)
    for start in range(0, flat.size, _BLOCK):
        part, into = flat[start : start + _BLOCK], result[start : start + _BLOCK]
        bits = scratch[: part.size]
        np.bitwise_and(part.view(np.uint32), _EXPONENT, out=bits)
        if bits.max() >= _LARGE:
            into[:] = part.astype(np.float16)
            continue
        zeros = bits.min() <= _ZERO
        np.maximum(bits, _SMALLEST, out=bits)
        np.add(bits, _SHIFT, out=bits)
        anchor = bits.view(np.float32)
        np.add(part, anchor, out=into)
        np.subtract(into, anchor, out=into)
        if zeros:  # the subtraction gives +0 where x is negative
            np.copysign(into, part, out=into)
    return result.reshape(x.shape)
