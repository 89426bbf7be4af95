"""The search for a plan at the size of BERT base: how long it takes, and how much memory. Run by quantization.py."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import embedders
import numpy as np

_MOST_SECONDS, _MOST_BYTES = 15 * 60, 6e9
_AGREEMENT = 0.99
# How often memory is looked at, in seconds.
_EVERY = 0.5


def checkpoint(folder: Path) -> Path:
    """BERT base with random weights, wide enough that attention attends to something, and MiniLM's tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(std=0.02)
            elif any(part in name for part in ("query", "key", "word_embeddings")):
                value.normal_(std=0.05)  # transformers' own 0.02 gives nearly uniform attention
            else:
                value.normal_(std=0.02)  # more would make all states alike: what attention adds is common to them
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (embedders.minilm() / name).exists():
            shutil.copy(embedders.minilm() / name, folder / name)
    return folder


def spread(folder: Path, texts: list[str]) -> float:
    """The mean cosine of states of different tokens: near 1 the outputs would be degenerate, and any plan would do."""
    eager = embedders.eager(folder)
    states = np.concatenate([eager.run(feeds)[0] for feeds in embedders.encode(folder, texts)]).astype(np.float64)
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    count = len(states)
    return float(((states.sum(0) ** 2).sum() - count) / (count * (count - 1)))


def measure(work: Path, targets: str, figures: Any) -> None:
    """One export with `--quantize auto`, in a process of its own, nothing remembered from an earlier one."""
    import figures as shared
    import sentences

    folder = checkpoint(work / "bert-base")
    likeness = spread(folder, sentences.split()[0][:10])
    shared.say(f"export --quantize auto of 110 M parameters to {targets}")
    bundle = work / "bert-base.bundle"
    command = [sys.executable, "-m", "palmtop.export", "export", str(folder), "-o", str(bundle), "--force", "--json"]
    command += [
        "--task",
        "feature-extraction",
        "--to",
        targets,
        "--quantize",
        "auto",
        "--min-agreement",
        str(_AGREEMENT),
    ]
    environment = {**shared.INHERITED, "PALMTOP_CACHE": ""}
    began = time.perf_counter()
    running = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE)
    peak, printed = _watched(running)
    seconds = time.perf_counter() - began
    if running.returncode:
        raise SystemExit(f"The export failed (exit code {running.returncode}).")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(printed)
    whole = 4 * sum(value for value in _parameters(folder))
    trials = document.get("trials", [])
    figures.raw["large"] = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": peak,
        "token_likeness": likeness,
        "stages": document.get("seconds"),
        "trials": trials,
    }
    figures.bounds += [
        shared.Bound(f"auto, {targets}: minutes", seconds / 60, _MOST_SECONDS / 60),
        shared.Bound(f"auto, {targets}: CPU minutes", (used.ru_utime + used.ru_stime) / 60, _MOST_SECONDS / 60),
        shared.Bound(f"auto, {targets}: peak memory, GB", peak / 1e9, _MOST_BYTES / 1e9),
    ]
    rows = [
        [f"{seconds / 60:.1f}", f"{(used.ru_utime + used.ru_stime) / 60:.1f}", f"{peak / 1e9:.2f}", f"{likeness:.2f}"]
    ]
    head = ["minutes", "CPU minutes", "peak memory, GB (all processes)", "mean cosine of different tokens' states"]
    figures.tables[f"`export --quantize auto --min-agreement {_AGREEMENT} --to {targets}`, random weights"] = head, rows
    per_format = whole * len(targets.split(","))
    tried = [
        [
            f"{entry['size'] / per_format:.3f}",
            f"{entry['agreement']:.5f}",
            "yes" if entry["passed"] else "no",
            "yes" if entry["chosen"] else "",
        ]
        for entry in trials
    ]
    if tried:
        head = ["bytes of the fp32 weights, mean of the formats", "agreement", "holds", "chosen"]
        figures.tables["Trials"] = head, tried
    stages = document.get("seconds") or {}
    figures.tables["Stages"] = ["stage", "seconds"], [[name, f"{value:.1f}"] for name, value in stages.items()]


def _parameters(folder: Path) -> list[int]:
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), "numpy") as weights:
        return [int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys()]  # noqa: SIM118


def _watched(running: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """The most bytes that a process and all it started held together, and what it printed. Shared pages count twice."""
    import threading

    printed: list[bytes] = []
    assert running.stdout is not None
    reader = threading.Thread(target=lambda stream: printed.append(stream.read()), args=(running.stdout,))
    reader.start()
    peak = 0
    while running.poll() is None:
        peak = max(peak, _held(running.pid))
        time.sleep(_EVERY)
    reader.join()
    return peak, b"".join(printed)


def _held(session: int) -> int:
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                total += int((entry / "statm").read_text().split()[1]) * page
        except (OSError, ValueError):  # ended meanwhile
            continue
    return total
