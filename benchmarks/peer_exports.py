"""What a user would write without palmtop, in its own process: a checkpoint that embeds text as `.pte` or `.mlpackage`.

    peer_exports.py executorch CHECKPOINT FOLDER        transformers.exporters, XNNPACK, dynamic shapes
    peer_exports.py coreml CHECKPOINT FOLDER            torch.export, then coremltools.convert, dynamic sequence, fp32

Inputs in both: input_ids, attention_mask, token_type_ids; the first output is the token states.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModel

LONGEST = 256
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def example(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Inputs to trace with."""
    ids = torch.randint(1000, 20000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def executorch(model: torch.nn.Module, folder: Path) -> None:
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter

    config = ExecutorchConfig(backend="xnnpack", dynamic=True)
    ExecutorchExporter().export(model, example(2, 32), config=config).save_pretrained(folder)


def coreml(model: torch.nn.Module, folder: Path) -> None:
    import coremltools
    from torch.export import Dim

    shapes = {name: {1: Dim.AUTO(min=2, max=LONGEST)} for name in INPUTS}
    inputs = example(1, 32)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).run_decompositions()
    package = coremltools.convert(
        program,
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=coremltools.precision.FLOAT32,
    )
    package.save(str(folder / "model.mlpackage"))


def main() -> None:
    kind, checkpoint, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModel.from_pretrained(checkpoint).eval().requires_grad_(False)
    {"executorch": executorch, "coreml": coreml}[kind](model, folder)


if __name__ == "__main__":
    main()
