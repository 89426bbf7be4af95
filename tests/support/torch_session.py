"""Pipelines over a checkpoint with no export in between: the artifact is the PyTorch model itself.

So tests of pipelines and of exporters do not depend on each other.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from palmtop.runtime.manifest import Artifact, Dim, Manifest, ModelSource, TensorSpec, TokenizerSpec
from palmtop.runtime.pipelines import Pipeline, make_pipeline, pipeline_of
from palmtop.runtime.session import Session
from palmtop.runtime.tokenizer import Tokenizer

from .tiny import AUTO_CLASSES

BATCH = Dim(symbol="batch", min=1)
SEQUENCE = Dim(symbol="sequence", min=1)
CHOICES = Dim(symbol="choices", min=1)
_ROLES = ("pad", "cls", "sep", "mask", "unk", "bos", "eos")


class TorchRunner:
    """Runs a Transformers model on numpy arrays and remembers the shapes it was given."""

    engine = "PyTorch"
    identity = None

    def __init__(self, model: torch.nn.Module, outputs: tuple[str, ...]):
        self.model = model
        self.outputs = outputs
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.shapes.append(feeds["input_ids"].shape)
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        with torch.no_grad():
            result = self.model(**tensors)
        arrays = {name: result[name].numpy() for name in self.outputs if name in result}
        if "sentence_embedding" in self.outputs:
            arrays["sentence_embedding"] = _mean(result["last_hidden_state"], tensors["attention_mask"]).numpy()
        return arrays


def load_model(folder: Path, task: str) -> torch.nn.Module:
    """The eager fp32 model of a checkpoint."""
    cls = getattr(transformers, AUTO_CLASSES[task])
    return cls.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def tokenizer_spec(folder: Path, max_length: int | None = None) -> TokenizerSpec:
    """What a manifest says of a checkpoint's tokenizer (the bundle being the checkpoint folder itself)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tuple(
        name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names
    )
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    return TokenizerSpec(
        path=".",
        kind=type(tokenizer.backend_tokenizer.model).__name__,
        tokenizer_class=type(tokenizer).__name__,
        max_length=max_length or min(tokenizer.model_max_length, 512),
        truncation_side=tokenizer.truncation_side,
        padding_side=tokenizer.padding_side,
        pad_to_multiple_of=None,
        special_tokens={role: str(getattr(tokenizer, f"{role}_token")) for role, i in ids.items() if i is not None},
        special_ids={role: i for role, i in ids.items() if i is not None},
        inputs=inputs,
        input_pad={"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0},
    )


def torch_pipeline(
    folder: Path,
    task: str,
    *,
    batch: Dim = BATCH,
    sequence: Dim = SEQUENCE,
    choices: Dim = CHOICES,
    postprocess: dict | None = None,
    preprocess: dict | None = None,
    spec: TokenizerSpec | None = None,
) -> Pipeline:
    """A palmtop pipeline over a checkpoint, executed by PyTorch; the artifact's axes are as given."""
    spec = spec or tokenizer_spec(folder)
    model = load_model(folder, task)
    outputs = pipeline_of(task).outputs
    dims = (batch, choices, sequence) if task == "multiple-choice" else (batch, sequence)
    artifact = Artifact(
        target="torch",
        path="model",
        precision="fp32",
        inputs=tuple(TensorSpec(name, "int64", dims) for name in spec.inputs),
        outputs=tuple(TensorSpec(name, "float32", dims) for name in outputs),
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = {"activation": "softmax", "id2label": config.get("id2label", {})} | (postprocess or {})
    manifest = Manifest(
        source=ModelSource("tiny", None, "0" * 64, type(model).__name__),
        task=task,
        artifacts=(artifact,),
        producer={},
        tokenizer=spec,
        preprocess=preprocess or {},
        postprocess=settings,
    )
    session = Session(artifact, TorchRunner(model, outputs))
    return make_pipeline(manifest, Tokenizer.open(folder, spec), session)


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=-1)
