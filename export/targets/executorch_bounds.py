"""How large a size can be, for the memory that ExecuTorch plans."""

from __future__ import annotations

import functools
from typing import Any

import sympy
from executorch.exir import sym_util
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod
from torch.utils._sympy.value_ranges import bound_sympy

# As it is before anything is patched.
_bound = sym_util.eval_upper_bound


def upper_bound(size: Any) -> int:
    """The largest value of a size, by the ranges of the axes it is made of. Errors as in `eval_upper_bound`.

    Numerator and denominator of a quotient are bounded each for itself, so that of `s * s // s` for 2 to 512 executorch
    says 131072: axes that were merged and told apart again have such sizes, and memory was planned for them. What
    divides exactly is divided first. Remainders are written by the quotient, so that a length filled up to a multiple
    of a block and divided into blocks has blocks of one size: a reshape bounded by more than the memory that it is of
    is refused when the file is loaded.
    """
    if isinstance(size, int) or not size.node.expr.has(FloorDiv):
        return _bound(size)
    found = bound_sympy(_divided(size.node.expr), size.node.shape_env.var_to_range).upper
    return min(int(found), _bound(size)) if isinstance(found, sympy.Integer) else _bound(size)


@functools.lru_cache(maxsize=4096)
def _divided(expression: sympy.Expr) -> sympy.Expr:
    """The expression with its quotients divided out; those that remainders leave are numbers of their own meanwhile."""
    quotients: dict[sympy.Symbol, sympy.Expr] = {}

    def by_quotient(number: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
        whole = FloorDiv(number, divisor)
        name = sympy.Symbol(f"whole[{whole}]", integer=True)
        quotients[name] = whole
        return number - divisor * name

    plain = expression.replace(PythonMod, by_quotient).replace(Mod, by_quotient)
    return plain.replace(FloorDiv, _quotient).xreplace(quotients)


def _quotient(numerator: sympy.Expr, denominator: sympy.Expr) -> sympy.Expr:
    """The quotient as a polynomial of whole coefficients, where it is one."""
    symbols = sorted(numerator.free_symbols | denominator.free_symbols, key=str)
    quotient = sympy.cancel(numerator / denominator)
    polynomial = bool(symbols) and quotient.is_polynomial(*symbols)
    if polynomial and all(factor.is_Integer for factor in sympy.Poly(quotient, *symbols).coeffs()):
        return quotient
    return FloorDiv(numerator, denominator)
