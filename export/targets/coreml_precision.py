"""Which operations of an fp16 Core ML program stay fp32.

Those of modules that were asked for, and those whose result is an angle or becomes an integer: there fp16, with its 11
significant bits, is not a little noise but another answer. Rotary embeddings take cos(position * frequency), which at
position 500 would be off by a quarter of a radian; relative positions are sorted into buckets by the integer part of a
logarithm, and 1.999 is in another bucket than 2. Such chains start from positions and are small.
"""

from __future__ import annotations

from coremltools.converters.mil.mil import Block, Operation, Program

_ANGLES = {"cos", "sin", "tan"}
_ROUNDING = {"floor", "ceil", "round", "floor_div", "mod"}
# What a value passes through on its way there, and costs little. Others (linear, conv, softmax) end the chain.
_CHEAP = {
    *("add", "sub", "mul", "real_div", "minimum", "maximum", "abs", "log", "exp", "sqrt", "pow", "clip", "sign"),
    *("reshape", "transpose", "concat", "expand_dims", "squeeze", "tile", "select", "slice_by_index", "cast"),
}


def fp32_operations(program: Program, keep: tuple[str, ...], modules: dict[str, str]) -> set[str]:
    """Names of the operations to leave in fp32.

    Args:
        keep: paths of PyTorch modules; what is inside them is kept too.
        modules: operation name -> path of the module it came from.
    """
    kept: set[str] = set()
    for function in program.functions.values():
        _keep_exact(function, kept)
    for name, module in modules.items():
        if any(module == path or module.startswith(f"{path}.") for path in keep):
            kept.add(name)
    return kept


def _keep_exact(block: Block, kept: set[str]) -> None:
    """Walk backwards, so that the readers of an operation are known before itself."""
    for operation in reversed(list(block.operations)):
        for inner in operation.blocks:
            _keep_exact(inner, kept)
        if operation.op_type == "const":
            continue
        if operation.op_type in _ANGLES | _ROUNDING or _makes_integers(operation):
            kept.add(operation.name)
        elif operation.op_type in _CHEAP or _is_outer_product(operation):
            readers = {reader.name for output in operation.outputs for reader in output.child_ops}
            if readers & kept:
                kept.add(operation.name)


def _makes_integers(operation: Operation) -> bool:
    return operation.op_type == "cast" and "int" in str(operation.dtype.val) and _is_float(operation.x)


def _is_float(value: object) -> bool:
    return any(value.is_tensor_or_scalar_of(dtype=dtype) for dtype in ("fp16", "fp32"))  # type: ignore[attr-defined]


def _is_outer_product(operation: Operation) -> bool:
    """Positions times frequencies, as Transformers writes it: a product of a column and a row."""
    if operation.op_type != "matmul":
        return False
    axis = -2 if operation.transpose_x.val else -1
    return operation.x.shape[axis] == 1
