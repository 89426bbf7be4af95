"""What coremltools 9.0 gets wrong with programs of torch 2.13, and how we get around it.

Each workaround is a function that patches coremltools while `compatible()` is entered, and is undone on the way out:
nothing here changes coremltools for anybody else in the process. tests/export/test_coreml_compat.py has, for each of
them, a test that fails once coremltools does without.
"""

from __future__ import annotations

import logging
import math
import numbers
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import coreml_cache
from .coreml_graph import output_copy
from .coreml_import import import_coremltools


@dataclass(frozen=True)
class Workaround:
    """`apply` patches through the stack that undoes it. `affected`: versions; `symptom`: what one sees without it."""

    name: str
    affected: str
    symptom: str
    apply: Callable[[ExitStack], None]


WORKAROUNDS: dict[str, Workaround] = {}


def workaround(affected: str, symptom: str) -> Callable[[Callable[[ExitStack], None]], Callable[[ExitStack], None]]:
    """Register a function as a workaround, under its own name."""

    def register(function: Callable[[ExitStack], None]) -> Callable[[ExitStack], None]:
        WORKAROUNDS[function.__name__] = Workaround(function.__name__, affected, symptom, function)
        return function

    return register


@contextmanager
def compatible(without: tuple[str, ...] = ()) -> Iterator[None]:
    """coremltools with every workaround applied but those named in `without`, quiet, and as it was afterwards."""
    with quiet(), ExitStack() as stack:
        coreml_cache.register(stack, registered)
        for entry in WORKAROUNDS.values():
            if entry.name not in without:
                entry.apply(stack)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No notices of untested versions, no progress bars, no chatter, while coremltools is imported and works."""
    logger = logging.getLogger("coremltools")
    level, disabled = logger.level, logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            import_coremltools()
        finally:
            logging.disable(disabled)
        logger.setLevel(logging.CRITICAL)
        try:
            with no_progress_bars():
                yield
        finally:
            logger.setLevel(level)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    from coremltools.converters.mil.backend.mil import load as backend
    from coremltools.converters.mil.frontend.torch import ops as frontend

    with ExitStack() as stack:
        for module, name in ((frontend, "_tqdm"), (backend, "tqdm")):
            if hasattr(module, name):
                replaced(stack, module, name, lambda items, *_, **__: items)
        yield


def replaced(stack: ExitStack, owner: Any, name: str, value: Any) -> Any:
    """Set an attribute until the stack unwinds; returns what it was."""
    previous = owner.__dict__[name]
    setattr(owner, name, value)
    stack.callback(setattr, owner, name, previous)
    return previous


def registered(stack: ExitStack, name: str, translate: Callable) -> None:
    """Register the translation of a PyTorch operation until the stack unwinds."""
    table = _registry().name_to_func_mapping
    missing = object()
    previous = table.get(name, missing)
    table[name] = translate
    stack.callback(lambda: table.pop(name) if previous is missing else table.__setitem__(name, previous))


def _registry() -> Any:
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    return _TORCH_OPS_REGISTRY


def convertible(target: Any) -> bool:
    """Whether coremltools has a translation for a node's target (an operator overload or a Python function)."""
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    name = target.name() if callable(getattr(target, "name", None)) else getattr(target, "__name__", str(target))
    return sanitize_op_kind(name) in _registry().name_to_func_mapping


# --- workarounds ----------------------------------------------------------------------------------------------------

_ALL = "coremltools <= 9.0"


@workaround(_ALL, "NotImplementedError: Unsupported fx node, kind alias")
def aliases_are_identities(stack: ExitStack) -> None:
    """Decomposition makes `alias` of `detach` and of constants; it computes nothing and has no translation."""

    def identity(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs

        context.add(_get_inputs(context, node)[0], torch_name=node.name)

    registered(stack, "alias", identity)


@workaround(_ALL, "NotImplementedError: Unsupported fx node, kind __and__ / __or__ / bitwise_or / __xor__")
def truth_values_combine(stack: ExitStack) -> None:
    """`&` of truth values has a translation, which is not found as `__and__`; `|` and `^` have none.

    Their bits are not to be had in Core ML: on integers, which `logical_or` would silently take for truth values, the
    conversion stops.
    """
    table = _registry().name_to_func_mapping
    registered(stack, "__and__", table["bitwise_and"])  # looked up as `and`, which is there
    for name in ("or", "xor"):
        for spelled in (name, f"__{name}__", f"bitwise_{name}"):
            registered(stack, spelled, _of_truth_values(table[f"logical_{name}"]))


def _of_truth_values(translate: Callable) -> Callable:
    def translate_checked(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs
        from coremltools.converters.mil.mil import types

        if not all(types.is_bool(value.dtype) for value in _get_inputs(context, node)):
            raise NotImplementedError("Core ML combines truth values, not the bits of integers")
        translate(context, node)

    return translate_checked


@workaround(_ALL, "NotImplementedError: Unsupported fx node, kind to.dtype")
def casts_by_overload(stack: ExitStack) -> None:
    """`to.dtype` is translated by the function for `to`, which knows that overload, but is not registered under it."""
    registered(stack, "to.dtype", _registry().name_to_func_mapping["to"])


@workaround(_ALL, "ValueError: Main block's input name is different from its corresponding var's name")
def outputs_have_values_of_their_own(stack: ExitStack) -> None:
    """coremltools names an output by renaming its value, which fails when that is an input or another output too.

    So such an output is a copy, and the pass that removes copies leaves it.
    """
    from coremltools.converters.mil.mil.passes.defs.cleanup.noop_elimination import noop_elimination

    def identity(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs
        from coremltools.converters.mil.mil import Builder as mb

        context.add(mb.identity(x=_get_inputs(context, node)[0], name=node.name))

    def match_pattern(operation: Any) -> Any:
        outputs = operation.enclosing_block.outputs
        is_copy = operation.op_type == "identity" and operation.outputs[0] in outputs
        if is_copy and (operation.x.op is None or operation.x in outputs):
            return None
        return original(operation)

    registered(stack, output_copy.__name__, identity)
    original = replaced(stack, noop_elimination, "_match_pattern", staticmethod(match_pattern)).__func__


@workaround(_ALL, "ValueError: Tensors in 'values' of the concat op should share the same data type")
def sizes_stay_integers(stack: ExitStack) -> None:
    """The whole quotient of two integers is an integer; coremltools makes it fp32, of which it can make no shape.

    Remainders, maxima and minima of sizes have no translation at all.
    """
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil.ops.defs._utils import promote_input_dtypes

    def binary(build: Callable) -> Callable:
        def translate(context: Any, node: Any) -> None:
            x, y = promote_input_dtypes(_get_inputs(context, node, expected=2))
            context.add(build(x=x, y=y, name=node.name))

        return translate

    for name, build in (
        ("floordiv", mb.floor_div),
        ("floor_divide", mb.floor_div),
        ("mod", mb.mod),
        ("sym_max", mb.maximum),
        ("sym_min", mb.minimum),
    ):
        registered(stack, name, binary(build))
    registered(stack, "div", _of_whole_numbers(_registry().name_to_func_mapping["div"]))


def _of_whole_numbers(translate: Callable) -> Callable:
    """Lengths in samples are divided too, and are beyond what fp16 holds: integers stay what they are."""

    def translate_checked(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs
        from coremltools.converters.mil.mil import Builder as mb
        from coremltools.converters.mil.mil import types

        x, y, *mode = _get_inputs(context, node)
        (rounding,) = _get_kwinputs(context, node, "rounding_mode", default=[mode[0] if mode else None])
        rounding = getattr(rounding, "val", rounding)
        if rounding is None or not (types.is_int(x.dtype) and types.is_int(y.dtype)):
            translate(context, node)
        elif rounding == "floor":
            context.add(mb.floor_div(x=x, y=y, name=node.name))
        else:  # towards zero
            size = mb.floor_div(x=mb.abs(x=x), y=mb.abs(x=y))
            context.add(mb.mul(x=size, y=mb.mul(x=mb.sign(x=x), y=mb.sign(x=y)), name=node.name))

    return translate_checked


@workaround(_ALL, "ValueError: `updates` must have the same data type as the named input `data`")
def values_are_put_as_what_is_there(stack: ExitStack) -> None:
    """Zeros of an integer type are made fp32, and what is put into them is not."""

    def translate(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs
        from coremltools.converters.mil.mil import Builder as mb
        from coremltools.converters.mil.mil.types import builtin_to_string

        there, _, values = _get_inputs(context, node)[:3]
        before = list(node.inputs)
        if values.dtype != there.dtype:
            name = f"{node.name}__values"  # no other node has such a name
            context.add(mb.cast(x=values, dtype=builtin_to_string(there.dtype)), torch_name=name)
            node.inputs = [*before[:2], name, *before[3:]]
        try:
            original(context, node)
        finally:
            node.inputs = before

    original = _registry().name_to_func_mapping["index_put"]
    registered(stack, "index_put", translate)


@workaround(_ALL, "gelu(approximate='tanh') is converted as the exact one, or not at all")
def gelu_is_approximate_when_asked(stack: ExitStack) -> None:
    """Of `torch.export`'s arguments by keyword the translation sees none, of those by position the wrong thing."""

    def translate(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs
        from coremltools.converters.mil.mil import Builder as mb

        source, *given = _get_inputs(context, node)
        (kind,) = given or _get_kwinputs(context, node, "approximate", default=["none"])
        approximate = getattr(kind, "val", kind) == "tanh"
        context.add(mb.gelu(x=source, mode="TANH_APPROXIMATION" if approximate else "EXACT", name=node.name))

    registered(stack, "gelu", translate)


@workaround(_ALL, "1 / x is 1 / (x + 0.0001): slopes of ALiBi, and what is divided by small numbers, are off")
def reciprocals_are_exact(stack: ExitStack) -> None:
    """Core ML's `inverse` adds a number to what it divides by, of which the translation leaves the default."""

    def translate(context: Any, node: Any) -> None:
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs
        from coremltools.converters.mil.mil import Builder as mb
        from coremltools.converters.mil.mil import types

        (x,) = _get_inputs(context, node, expected=1)
        x = mb.cast(x=x, dtype="fp32") if types.is_int(x.dtype) else x
        context.add(mb.real_div(x=types.nptype_from_builtin(x.dtype)(1), y=x, name=node.name))

    registered(stack, "reciprocal", translate)


@workaround(_ALL, "recurrent layers are unrolled, one copy of the layer for each step of the traced length")
def recurrent_layers_by_overload(stack: ExitStack) -> None:
    """`aten.lstm.input` and its like are not registered, though `lstm`, `gru`, ... translate them.

    Those functions expect one name for each result, as in TorchScript; `torch.export` has one for all of them.
    """
    for name, results in (("lstm", 3), ("gru", 2), ("rnn_tanh", 2), ("rnn_relu", 2)):
        registered(stack, f"{name}.input", _with_results(_registry().name_to_func_mapping[name], results))


def _with_results(translate: Callable, count: int) -> Callable:
    def translate_to_tuple(context: Any, node: Any) -> None:
        node.outputs = [f"{node.name}__result{index}" for index in range(count)]  # no other node has such a name
        translate(context, node)
        context.add(tuple(context[name] for name in node.outputs), torch_name=node.name)

    return translate_to_tuple


@workaround(_ALL, "a `select` between scalars is declared rank 0 though it computes the rank of its condition")
def select_has_the_shape_of_its_condition(stack: ExitStack) -> None:
    """The documentation of `select` says that its shape follows from all three inputs; its inference left out `cond`.

    Masks as eager attention makes them (`where(mask, 0.0, -30000.0)`) meet this; the Neural Engine's compiler is
    reported to reject such programs.
    """
    from coremltools.converters.mil.mil.ops.defs._utils import infer_type_with_broadcast
    from coremltools.converters.mil.mil.ops.defs.iOS15.control_flow import select

    def type_inference(self: Any) -> Any:
        inferred = original(self)
        return infer_type_with_broadcast(inferred, self.cond.sym_type, _primitive(inferred))

    original = replaced(stack, select, "type_inference", type_inference)


def _primitive(sym_type: Any) -> Any:
    from coremltools.converters.mil.mil import types

    return sym_type.get_primitive() if types.is_tensor(sym_type) else sym_type


@workaround(_ALL, "five extra operations for each embedding, from iOS 17 on")
def embeddings_have_no_negative_indices(stack: ExitStack) -> None:
    """`gather` takes no negative indices from iOS 17 on, so a pass makes them positive first; PyTorch has none here."""
    from coremltools.converters.mil.mil.passes.defs.optimize_tensor_operation import guard_negative_gather_indices
    from coremltools.converters.mil.mil.scope import ScopeSource

    never_negative = {"aten.embedding.default", "aten.index_select.default", "aten.gather.default"}

    def guard(operation: Any, block: Any) -> None:
        origin = operation.scopes.get(ScopeSource.EXIR_STACK_TRACE) or [None]
        if origin[0] not in never_negative:
            original(operation, block)

    name = "_try_match_and_transform_pattern"
    original = replaced(stack, guard_negative_gather_indices, name, staticmethod(guard)).__func__


# --- speed: the same programs, sooner -------------------------------------------------------------------------------


@workaround(_ALL, "a quarter of conversion is spent in sympy.solve, on equations with one division in them")
def reshape_solved_by_division(stack: ExitStack) -> None:
    """With one unknown dimension among constants, its size is the volume divided by the others."""
    from coremltools.converters.mil.mil.ops.defs.iOS15.tensor_transformation import reshape

    def enforce_volumetric_constraint(left_volume: Any, inshape: Any) -> list:
        shape = list(inshape)
        unknown = [axis for axis, size in enumerate(shape) if not isinstance(size, numbers.Integral)]
        known = math.prod(int(size) for size in shape if isinstance(size, numbers.Integral))
        if len(unknown) != 1 or known <= 0:
            return original(left_volume, inshape)
        quotient = left_volume / known
        shape[unknown[0]] = int(quotient) if quotient.is_Integer else quotient
        return shape

    original = replaced(
        stack, reshape, "enforce_volumetric_constraint", staticmethod(enforce_volumetric_constraint)
    ).__func__


@workaround(_ALL, "an eighth of an fp16 conversion: every weight is copied and masked to find its largest value")
def overflow_checked_by_range(stack: ExitStack) -> None:
    """A constant whose least and greatest values fit into fp16 does not overflow; only others need the longer look."""
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    def fp16_overflow(operation: Any) -> bool:
        return not all(map(_fits_fp16, operation.get_flattened_inputs())) and original(operation)

    original = replaced(stack, FP16ComputePrecision, "fp16_overflow", staticmethod(fp16_overflow)).__func__


def _fits_fp16(var: Any) -> bool:
    if var.op is None or var.op.op_type != "const" or not var.is_tensor_or_scalar_of(dtype="fp32"):
        return True
    value = np.asarray(var.op.val.val)
    return value.size == 0 or bool(value.min() >= -65504 and value.max() <= 65504)


@workaround(_ALL, "a tenth of conversion: sets of compressed weights are propagated through programs that have none")
def no_weights_to_protect(stack: ExitStack) -> None:
    """After each pass, every value learns which compressed (`constexpr`) weights it depends on."""
    from coremltools.converters.mil.mil.block import Block

    def propagate(self: Any) -> None:
        if any(operation.op_type.startswith("constexpr_") or operation.blocks for operation in self.operations):
            original(self)

    original = replaced(stack, Block, "_propagate_nonreplaceable_vars", propagate)
