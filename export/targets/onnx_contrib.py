"""ONNX Runtime's own operations, as far as palmtop writes them.

onnxscript builds nodes from schemas, and onnx knows only the standard's. These follow ONNX Runtime's
ContribOperators.md.
"""

from __future__ import annotations

import onnx
from onnx.defs import OpSchema
from onnxscript.values import Opset

_DOMAIN = "com.microsoft"
_ANY = [
    f"tensor({name})" for name in ("float", "float16", "bfloat16", "uint8", "int8", "int32", "int64", "uint4", "int4")
]

# Name -> inputs ("?" marks optional ones) and attributes.
_OPERATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "MatMulIntegerToFloat": (
        ("A", "B", "a_scale", "b_scale", "a_zero_point?", "b_zero_point?", "bias?"),
        (),
    ),
    "MatMulNBits": (
        ("A", "B", "scales", "zero_points?", "g_idx?", "bias?"),
        ("K", "N", "bits", "block_size", "accuracy_level"),
    ),
    "GatherBlockQuantized": (
        ("data", "indices", "scales", "zero_points?"),
        ("bits", "block_size", "gather_axis", "quantize_axis"),
    ),
}


def _register(name: str, inputs: tuple[str, ...], attributes: tuple[str, ...]) -> None:
    if onnx.defs.has(name, domain=_DOMAIN):
        return
    option = OpSchema.FormalParameterOption
    parameters = [
        OpSchema.FormalParameter(
            entry.rstrip("?"), f"T{place}", param_option=option.Optional if entry.endswith("?") else option.Single
        )
        for place, entry in enumerate(inputs)
    ]
    onnx.defs.register_schema(
        OpSchema(
            name,
            _DOMAIN,
            1,
            inputs=parameters,
            outputs=[OpSchema.FormalParameter("output", "TO")],
            type_constraints=[(f"T{place}", _ANY, "") for place in range(len(inputs))] + [("TO", _ANY, "")],
            attributes=[OpSchema.Attribute(key, OpSchema.AttrType.INT, required=False) for key in attributes],
        )
    )


for _name, (_inputs, _attributes) in _OPERATIONS.items():
    _register(_name, _inputs, _attributes)

contrib = Opset(_DOMAIN, 1)
