"""For graphs.py: how large programs and ONNX files are, with three kinds of attention, and what capturing costs."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from figures import Figures
from palmtop.export import capture as capturing
from palmtop.export.methods import capture_subject
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.targets import Options, get_target, onnx, onnx_fuse
from palmtop.runtime.backends import get_backend
from palmtop.runtime.manifest import Dim


def add(checkpoint: Path, figures: Figures) -> None:
    """Tables of a checkpoint's program, raw and normalised, and of its ONNX file with three kinds of attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            _add(checkpoint, figures)
        finally:
            logging.disable(logging.NOTSET)


def _add(checkpoint: Path, figures: Figures) -> None:
    subject = checkpoint_subject(open_source(checkpoint), None, None)
    with mock.patch.object(capturing, "normalize", lambda program: program):
        raw = capture_subject(subject)
    began = time.perf_counter()
    captured = capture_subject(subject)
    capture_seconds = time.perf_counter() - began
    began = time.perf_counter()
    captured.specialize({"batch": Dim(size=1)})
    specialize_seconds = time.perf_counter() - began
    difference = max(
        float(np.abs(expected.values - actual).max())
        for case in subject.cases()
        for output, rows in case.expected.items()
        for expected, actual in zip(rows, _rows(captured, case, output), strict=True)
    )
    figures.tables["Capture"] = (
        ["nodes, raw", "nodes, normalised", "largest difference from eager", "seconds", "seconds to narrow an axis"],
        [
            [
                str(len(raw.program.graph.nodes)),
                str(len(captured.program.graph.nodes)),
                f"{difference:g}",
                f"{capture_seconds:.1f}",
                f"{specialize_seconds:.2f}",
            ]
        ],
    )
    target = get_target("onnx")
    artifact = target.plan(captured, Options())
    counts = []
    for attention, fuse in (
        (onnx.aten_scaled_dot_product_attention, mock.Mock()),
        (onnx._attention, mock.Mock()),
        (onnx._attention, onnx_fuse.fuse_attention),
    ):
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(onnx, "_attention", attention),
            mock.patch.object(onnx_fuse, "fuse_attention", fuse),
        ):
            path = Path(folder) / "model.onnx"
            target.lower(captured, artifact, "0" * 64, path)
            counts.append(str(sum(get_backend("onnx").contents(path).operations.values())))
    figures.tables["Operations of the ONNX file, by how attention is written"] = (
        ["torchlib's products", "palmtop's products", "the standard's operation"],
        [counts],
    )


def _rows(captured: capturing.Captured, case: object, output: str) -> list[np.ndarray]:
    from palmtop.export.reference import valid_reference_rows

    feeds = case.feeds  # type: ignore[attr-defined]
    names = [spec.name for spec in captured.outputs]
    with torch.no_grad():
        results = captured.program.module()(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    spec = captured.outputs[names.index(output)]
    rows = valid_reference_rows(results[names.index(output)].numpy(), spec, feeds)
    return [row.reshape(-1) for row in rows]
