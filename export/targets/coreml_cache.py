"""How Core ML writes into a cache: as a slice, which a state takes without a copy; as a scatter before iOS 18."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ..generation.write_at import WRITE_AT


def register(stack: ExitStack, registered: Any) -> None:
    """Let coremltools translate `write_at`, until the stack unwinds."""
    name = WRITE_AT.name()
    for spelled in (name, name.replace("::", ".")):
        registered(stack, spelled, _write_at)


def _write_at(context: Any, node: Any) -> None:
    import coremltools as ct
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    cache, new, start = _get_inputs(context, node, expected=3)
    length = new.shape[2] if isinstance(new.shape[2], int) else mb.gather(x=mb.shape(x=new), indices=[2], axis=0)
    end = mb.add(x=start, y=length)
    if is_current_opset_version_compatible_with(ct.target.iOS18):
        other = [True, True, False, True]
        result = mb.slice_update(
            x=cache,
            update=new,
            begin=mb.concat(values=[[0, 0], start, [0]], axis=0),
            end=mb.concat(values=[[0, 0], end, [0]], axis=0),
            begin_mask=other,
            end_mask=other,
            name=node.name,
        )
    else:
        first, last = mb.squeeze(x=start, axes=[0]), mb.squeeze(x=end, axes=[0])
        places = mb.range_1d(start=first, end=last, step=1)
        result = mb.scatter(data=cache, indices=places, updates=new, axis=2, mode="update", name=node.name)
    context.add(result)
