"""Small modules and captures that the Core ML tests share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from palmtop.export import hf
from palmtop.export.capture import Captured, Method, capture, trace_module
from palmtop.export.normalize import normalize
from palmtop.export.targets import Options, get_target
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.manifest import Dim, TensorSpec
from palmtop.runtime.mil import Program

from ..support.tiny import tiny_config, tiny_model

IDENTITY = "ab" * 32
BATCH = Dim(symbol="batch", min=1)
SEQUENCE = Dim(symbol="sequence", min=2, max=48)
LONGEST = 48


class Call(torch.nn.Module):
    """A function of one tensor, as a module; modules that it uses are given by name."""

    def __init__(self, function, **modules: torch.nn.Module):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: torch.Tensor):
        return self.function(self, x)


def captured_module(
    module: torch.nn.Module, dims: Sequence[Dim], outputs: Sequence[str] = ("y",), dtype: str = "float32"
) -> Captured:
    """A module of one input `x`, captured and normalised as the export does it."""
    sizes = [dim.size or (2 if dim.symbol == "batch" else 7) for dim in dims]
    torch.manual_seed(0)
    x = torch.randn(sizes) if dtype == "float32" else torch.randint(0, 5, sizes)
    spec = TensorSpec("x", dtype, tuple(dims))
    module = module.eval().requires_grad_(False)
    result = capture(module, {"x": x}, [spec], list(outputs), trace=trace_module)
    normalize(result.program)
    return result


def captured_text_model(model_type: str, task: str, outputs: Sequence[str]) -> tuple[torch.nn.Module, Captured]:
    """A tiny Transformers model with lively weights, captured with batch and sequence free."""
    config = tiny_config(model_type, 500, LONGEST, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = tiny_model(config, task)
    names = ["input_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 0) and "token_type_ids" in inspect.signature(model.forward).parameters:
        names.append("token_type_ids")
    example = {name: tensor for name, tensor in text_feeds(12, rows=2).items() if name in names}

    def call(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        result = module(**inputs, return_dict=True)
        return [getattr(result, name) for name in outputs]

    specs = [TensorSpec(name, "int64", (BATCH, Dim(symbol="sequence", min=1, max=LONGEST))) for name in example]
    result = capture(Method(model, call), example, specs, list(outputs), trace=hf.trace)
    normalize(result.program)
    return model, result


def text_feeds(length: int, rows: int = 1) -> dict[str, torch.Tensor]:
    """Token ids, the last third of each row but the first padded."""
    ids = torch.randint(5, 500, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1:, (2 * length) // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def lowered(captured: Captured, path: Path, options: Options | None = None, ios: str | None = None) -> Program:
    """Plan, check and lower, and load what was written."""
    target = get_target("coreml")
    artifact = target.plan(captured, options or Options())
    if ios is not None:
        artifact = dataclasses.replace(artifact, minimum_os={"ios": ios, "macos": ""})
    found = target.unsupported(captured, artifact)
    if found:
        raise UnsupportedError(str(found))
    target.lower(captured, artifact, IDENTITY, path)
    return Program.load(path)


def run(program: Program, feeds: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Predict, integers as the int32 that Core ML takes."""
    return program.predict(
        {
            name: feeds[name].numpy().astype(np.float32 if feeds[name].is_floating_point() else np.int32)
            for name in program.inputs
        }
    )


def kinds(program: Program) -> list[str]:
    """The types of all operations but constants."""
    return [operation.type for operation in program.operations if operation.type != "const"]


def distance(got: np.ndarray, reference: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of the reference."""
    expected = reference.numpy()
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())
