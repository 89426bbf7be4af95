"""The one door to `transformers.exporters`, which captures Hugging Face models.

It is experimental and tied to versions of torch (`pyproject.toml` pins them), so nothing else in palmtop imports it.
Its `DynamoExporter` registers cache classes with pytree, gives `forward` a flat signature, and swaps code that
`torch.export` cannot trace while tracing, each swap undone afterwards. Our model instances are left as they were.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from transformers.exporters import DynamoConfig, DynamoExporter
from transformers.utils import logging as transformers_logging


def trace(
    model: torch.nn.Module, example: dict[str, torch.Tensor], dynamic_shapes: dict[str, dict[int, object]] | None
) -> ExportedProgram:
    """Export a Transformers model (or a module around one, with its `config`) called by keyword."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its notice of version drift: `palmtop doctor` tells, once, in full
    try:
        config = DynamoConfig(dynamic=dynamic_shapes is not None, dynamic_shapes=dynamic_shapes)
        program, _ = DynamoExporter().export_program(model, example, config)  # type: ignore[arg-type]
    finally:
        transformers_logging.set_verbosity(verbosity)
    return program
