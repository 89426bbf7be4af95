"""The one door to `transformers.exporters`, which captures Hugging Face models.

It is experimental and tied to versions of torch (`pyproject.toml` pins them), so nothing else in palmtop imports it.
Its `DynamoExporter` registers cache classes with pytree, gives `forward` a flat signature, and swaps code that
`torch.export` cannot trace while tracing, each swap undone afterwards. Our model instances are left as they were.
"""

# ruff: noqa: E402

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .imports import import_transformers

import_transformers()  # before the lines below import all that it leaves for later

import torch
import torch.fx._pytree as fx_pytree
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel
from transformers.exporters import DynamoConfig, DynamoExporter, register_backend
from transformers.exporters.metadata import load_treespec
from transformers.exporters.runners import ModelRunner
from transformers.exporters.utils import _PATCHES, apply_fx_node_fixes, apply_fx_program_fixes, apply_patches
from transformers.utils import logging as transformers_logging

from . import (  # noqa: F401  (they register themselves)
    model_patches,
    model_patches_ends,
    model_patches_longformer,
    model_patches_reformer,
)
from .modules import user_path

# What `transformers_backend.py` adds a format to that API with.
__all__ = ["DynamoConfig", "DynamoExporter", "ModelRunner", "load_treespec", "register_backend"]


def trace(
    model: torch.nn.Module, example: dict[str, torch.Tensor], dynamic_shapes: dict[str, dict[int, object]] | None
) -> ExportedProgram:
    """Export a Transformers model (or a module around one, with its `config`) called by keyword."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its notice of version drift: `palmtop doctor` tells, once, in full
    try:
        config = DynamoConfig(dynamic=dynamic_shapes is not None, dynamic_shapes=dynamic_shapes)
        with _experts_as_products(model), _patches_of_what_is_loaded("dynamo"):
            program, _ = DynamoExporter().export_program(model, example, config)
    finally:
        transformers_logging.set_verbosity(verbosity)
    return program


@contextlib.contextmanager
def _patches_of_what_is_loaded(backend: str) -> Iterator[None]:
    """Inside the block upstream's patches of models are those of modules that are loaded: it would import some forty
    others in half a second, none of which can be a part of a model that is there already."""
    every = _PATCHES.get(backend, [])
    _PATCHES[backend] = [patch for patch in every if _loaded(patch[0])]
    try:
        yield
    finally:
        _PATCHES[backend] = every


def _loaded(path: str) -> bool:
    """Of `transformers.models.NAME.modeling_NAME.Class`: whether its module is; of anything else: yes."""
    parts = path.split(".")
    return parts[:2] != ["transformers", "models"] or ".".join(parts[:4]) in sys.modules


@contextlib.contextmanager
def _experts_as_products(model: torch.nn.Module) -> Iterator[None]:
    """Mixtures of experts as batched products while they are traced.

    What Transformers prefers on a CPU sorts tokens by expert and counts them (`histc`), which no format has.
    """
    mixtures: list[tuple[PreTrainedModel, dict[str, str | None]]] = []
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and not any(module in set(other.modules()) for other, _ in mixtures):
            mixtures.append((module, module.get_experts_implementation()))
    try:
        for module, _ in mixtures:
            module.set_experts_implementation("batched_mm")
        yield
    finally:
        for module, before in mixtures:
            module.set_experts_implementation(before)


def onnx_translations() -> dict[Callable, Any]:
    """Upstream's corrections of torch.onnx's translations, by ATen operation."""
    from transformers.exporters.exporter_onnx import _ONNX_TRANSLATION_TABLE

    return dict(_ONNX_TRANSLATION_TABLE)


@contextlib.contextmanager
def onnx_patches(program: ExportedProgram) -> Iterator[None]:
    """Upstream's repairs for `torch.onnx.export`, on this program (in place) and, inside the block, on torch.onnx."""
    import transformers.exporters.exporter_onnx  # noqa: F401  (it registers them when imported)

    with _patches_of_what_is_loaded("onnx"), apply_patches("onnx"):
        apply_fx_node_fixes("onnx", program.graph_module)
        yield


def fix_onnx(exported: torch.onnx.ONNXProgram) -> None:
    """Upstream's repairs of the finished graph for ONNX Runtime, in place."""
    from transformers.exporters.exporter_onnx import apply_onnx_ir_fixes

    apply_onnx_ir_fixes(exported)


@contextlib.contextmanager
def executorch_patches(program: ExportedProgram) -> Iterator[None]:
    """Upstream's repairs for ExecuTorch, on this program (in place) and, inside the block, on executorch itself."""
    import transformers.exporters.exporter_executorch  # noqa: F401  (it registers them when imported)

    with apply_patches("executorch"), apply_patches("executorch.xnnpack"):
        apply_fx_program_fixes("executorch", program)
        apply_fx_node_fixes("executorch", program.graph_module)
        yield


def flat_inputs(inputs: Mapping[str, Any], spec: pytree.TreeSpec) -> list[Any]:
    """Keyword inputs as the list that a program traced with such ones takes (`spec`: of its arguments)."""
    return fx_pytree.tree_flatten_spec(((), dict(inputs)), spec)


def deepest_scope(scopes: str) -> str:
    """The PyTorch module in torch.onnx's `pkg.torch.onnx.name_scopes` of a node, as the user names it."""
    if not scopes:
        return ""
    *modules, _node = ast.literal_eval(scopes)
    return user_path(modules[-1]) if modules else ""
