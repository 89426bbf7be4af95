"""Operations outside of the opset that torch.onnx writes, as far as palmtop writes them.

onnxscript builds nodes from schemas, and onnx knows only the standard's. Those of `contrib` follow ONNX Runtime's
ContribOperators.md. `later` has operations of later opsets of the standard, cut to what is read of them: torch.onnx
cannot mix opsets, so they travel under a domain of our own until `into_the_standard`.
"""

from __future__ import annotations

import onnx
import onnx_ir
from onnx.defs import OpSchema
from onnxscript.values import Opset

_DOMAIN = "com.microsoft"
_LATER = "palmtop.later"
_LATER_OPSET = 23
_ANY = [
    f"tensor({name})" for name in ("float", "float16", "bfloat16", "uint8", "int8", "int32", "int64", "uint4", "int4")
]

_INT, _FLOAT = OpSchema.AttrType.INT, OpSchema.AttrType.FLOAT

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


_LATER_OPERATIONS = {
    "Attention": (("Q", "K", "V", "attn_mask?"), {"q_num_heads": _INT, "kv_num_heads": _INT, "scale": _FLOAT}),
    "QuantizeLinear": (("x", "y_scale", "y_zero_point"), {"axis": _INT, "block_size": _INT}),
}
_GIVES = {"QuantizeLinear": onnx_ir.DataType.UINT8}


def into_the_standard(model: onnx_ir.Model) -> None:
    """Give operations of `later` their place in the standard; the file then needs opset 23."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == _LATER]
    for node in nodes:
        node.domain = ""
        for output in node.outputs:  # which nothing inferred for a domain of our own
            output.type = output.type or onnx_ir.TensorType(_GIVES.get(node.op_type, onnx_ir.DataType.FLOAT))
    model.graph.opset_imports.pop(_LATER, None)
    if nodes:
        model.graph.opset_imports[""] = max(_LATER_OPSET, model.graph.opset_imports[""])


def _register(domain: str, name: str, inputs: tuple[str, ...], attributes: dict[str, OpSchema.AttrType]) -> None:
    if onnx.defs.has(name, domain=domain):
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
            domain,
            1,
            inputs=parameters,
            outputs=[OpSchema.FormalParameter("output", "TO")],
            type_constraints=[(f"T{place}", _ANY, "") for place in range(len(inputs))] + [("TO", _ANY, "")],
            attributes=[OpSchema.Attribute(key, kind, required=False) for key, kind in attributes.items()],
        )
    )


for _name, (_inputs, _attributes) in _OPERATIONS.items():
    _register(_DOMAIN, _name, _inputs, dict.fromkeys(_attributes, _INT))
for _name, (_inputs, _kinds) in _LATER_OPERATIONS.items():
    _register(_LATER, _name, _inputs, _kinds)

contrib = Opset(_DOMAIN, 1)
later = Opset(_LATER, 1)
