"""What Core ML checks of a model with flexible shapes before anything is fed: that it fits its default shapes.

Core ML compiles a program for the default shape of every flexible input, and refuses to load it when `stack` would then
join tensors of different shapes, whatever is fed later: coremltools' own test says so (`test_stack_dynamic_range_dim`
in its test_torch_ops.py). An interpreter could execute such a program; one that passes here and is refused on a phone
would be of no use.

Shapes are followed from the inputs through operations that keep them; a shape that is not known is not judged.
"""

from __future__ import annotations

from ..errors import UnsupportedError
from .features import Feature
from .ops import activation, elementwise_unary
from .plan import Block, Plan
from .registry import OPERATIONS

_MODULES = (activation.__name__, elementwise_unary.__name__)
_KEEP_SHAPE = {name for name, versions in OPERATIONS.items() if versions[0].run.__module__ in _MODULES} | {"identity"}


class DefaultShapeError(UnsupportedError, RuntimeError):
    """Core ML refuses to load the model because it does not fit its own default shapes.

    Also a RuntimeError, which is what Core ML raises.
    """


def check_default_shapes(plan: Plan, inputs: dict[str, Feature]) -> None:
    """Raise DefaultShapeError when a `stack` joins tensors whose shapes differ at the default shapes of `inputs`."""
    if all(feature.fixed_shape is not None for feature in inputs.values()):
        return
    shapes = {
        plan.inputs[name][0]: feature.default_shape
        for name, feature in inputs.items()
        if feature.kind == "tensor" and feature.default_shape is not None
    }
    _follow(plan.body, shapes)


def _follow(block: Block, shapes: dict[int, tuple[int, ...]]) -> None:
    for step in block.steps:
        if step.info.type == "stack":
            values = next((slots for name, slots in step.lists if name == "values"), ())
            joined = {shapes[slot] for slot in values if slot in shapes}
            if len(joined) > 1:
                raise DefaultShapeError(
                    f"operation {step.info.name} (stack): joins tensors of different shapes "
                    f"({' and '.join(str(list(s)) for s in sorted(joined))}) at the default shapes of the inputs; "
                    "Core ML refuses to load such a model. Convert it with defaults that fit: ct.RangeDim(default=...)"
                )
        elif step.info.type in _KEEP_SHAPE:
            source = next((slot for name, slot in step.arguments if name == "x"), None)
            if source in shapes:
                shapes[step.outputs[0]] = shapes[source]
