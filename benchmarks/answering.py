"""A process with pipelines in it: texts in, a row of numbers for each out, with the time that took.

    answering.py SPECIFICATIONS

Runs in palmtop's environment and in those of peers, so it imports just what the asked pipelines need. SPECIFICATIONS is
JSON: name -> {"kind": one of MAKERS, and its arguments}. Requests and replies are JSON, one a line; see turns.py.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# What a library prints goes to stderr; replies have the real stdout to themselves.
_REPLIES = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np  # noqa: E402

LONGEST = 256
# texts, how many tokens each has, texts that run together (None: each is a request of its own) -> (N, D) float32.
Answer = Callable[[Sequence[str], Sequence[int], "int | None"], np.ndarray]


def transformers(checkpoint: str, task: str, compiled: bool = False) -> Answer:
    """`transformers.pipeline` in PyTorch, eager or with its model compiled for every size at once."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(1)
    made = pipeline(task, model=checkpoint, device="cpu")
    if compiled:
        made.model.forward = torch.compile(made.model.forward, dynamic=True)
    return _of_pipeline(made, task)


def optimum(graph: str, checkpoint: str, task: str) -> Answer:
    """optimum's pipeline over one of its graphs."""
    from pathlib import Path

    import onnxruntime
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForSequenceClassification, pipeline
    from transformers import AutoTokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    kind = ORTModelForFeatureExtraction if task == "feature-extraction" else ORTModelForSequenceClassification
    path = Path(graph)
    model = kind.from_pretrained(path.parent, file_name=path.name, session_options=options)
    return _of_pipeline(pipeline(task, model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint)), task)


def _of_pipeline(made: Any, task: str) -> Answer:
    """What transformers' pipelines give, as rows: the mean of a text's states, or the scores in the order of labels."""
    if task == "feature-extraction":
        options = {"return_tensors": True, "tokenize_kwargs": {"truncation": True, "max_length": LONGEST}}

        def embed(texts: Sequence[str], lengths: Sequence[int], batch: int | None) -> np.ndarray:
            if batch is None:
                return np.stack([made(text, **options)[0].mean(0).numpy() for text in texts])
            # The states of a batch include those of padding, and nothing says how many they are.
            found = made(list(texts), batch_size=batch, **options)
            return np.stack([states[0, :size].mean(0).numpy() for states, size in zip(found, lengths, strict=True)])

        return embed

    # Left alone, this pipeline fails on texts that are longer than what the model has positions for.
    longest = min(LONGEST, made.model.config.max_position_embeddings)
    cut = {"top_k": None, "truncation": True, "max_length": longest}

    def classify(texts: Sequence[str], lengths: Sequence[int], batch: int | None) -> np.ndarray:
        if batch is None:
            found = [made(text, **cut) for text in texts]
        else:
            found = made(list(texts), batch_size=batch, **cut)
        return _scores([{entry["label"]: entry["score"] for entry in entries} for entries in found])

    return classify


def palmtop(bundle: str, target: str) -> Answer:
    """palmtop's pipeline over an artifact."""
    from palmtop.runtime import load

    made: Any = load(bundle, target=target, threads=1)

    def answer(texts: Sequence[str], lengths: Sequence[int], batch: int | None) -> np.ndarray:
        if batch is None:
            found = [made(text) for text in texts]
        else:
            found = made(list(texts), batch_size=batch)
        if made.task == "text-classification":
            return _scores([{label.label: label.score for label in labels} for labels in found])
        return np.stack(list(found))

    return answer


def _scores(found: Sequence[dict[str, float]]) -> np.ndarray:
    names = sorted(found[0])
    return np.array([[scores[name] for name in names] for scores in found], np.float32)


MAKERS: dict[str, Callable[..., Answer]] = {"transformers": transformers, "optimum": optimum, "palmtop": palmtop}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    answers: dict[str, Answer] = {}
    for name, specification in json.loads(sys.argv[1]).items():
        answers[name] = MAKERS[specification.pop("kind")](**specification)
    _reply({"ready": sorted(answers)})
    for line in sys.stdin:
        request = json.loads(line)
        before = time.perf_counter()
        rows = answers[request["name"]](request["texts"], request["lengths"], request["batch"])
        seconds = time.perf_counter() - before
        data = np.ascontiguousarray(rows, np.float32)
        _reply({"seconds": seconds, "shape": data.shape, "rows": base64.b64encode(data.tobytes()).decode()})


def _reply(document: dict[str, Any]) -> None:
    print(json.dumps(document), file=_REPLIES, flush=True)


if __name__ == "__main__":
    main()
