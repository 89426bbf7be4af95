"""Pipelines of sound over a checkpoint with no export in between: the artifact is the PyTorch model itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from palmtop.export.inputs.audio_steps import audio_preprocess
from palmtop.export.speech import ctc_vocabulary, frame_times, sound_classes
from palmtop.runtime.manifest import Artifact, Dim, Manifest, ModelSource, TensorSpec
from palmtop.runtime.pipelines import make_pipeline
from palmtop.runtime.session import Session

from .tiny_audio import AUTO_CLASSES

ANY = Dim(symbol="sequence", min=1)


class TorchSounds:
    """Runs a Transformers model on numpy arrays and remembers the shapes it was given."""

    engine = "PyTorch"
    identity = None

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]):
        self.model = model
        self.names = names
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.shapes.append(next(iter(feeds.values())).shape)
        with torch.no_grad():
            result = self.model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: result[name].numpy() for name in self.names}


def sound_pipeline(folder: Path, task: str, samples: Dim = ANY) -> Any:
    """A palmtop pipeline over a checkpoint, executed by PyTorch."""
    model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    data = audio_preprocess(extractor, ("input_values", "attention_mask"))
    names = {"audio-xvector": ("embeddings",), "feature-extraction": ("last_hidden_state",)}.get(task, ("logits",))
    batch = Dim(symbol="batch", min=1)
    spectrogram = data["steps"] and data["steps"][0]["step"] == "mel_spectrogram"
    dims = (batch, Dim(size=128), Dim(size=32)) if spectrogram else (batch, samples)
    inputs = [TensorSpec(data["input"], "float32", dims)]
    if data["mask"] is not None:
        inputs.append(TensorSpec(data["mask"], "int64", dims))
    outputs = tuple(TensorSpec(name, "float32", (batch, Dim(symbol="frames", min=0))) for name in names)
    artifact = Artifact(target="torch", path="model", precision="fp32", inputs=tuple(inputs), outputs=outputs)
    postprocess = {**frame_times(model.config), **sound_classes(model.config)}
    if task == "automatic-speech-recognition":
        source: Any = SimpleNamespace(folder=folder, config=model.config, trust_remote_code=False)
        postprocess |= ctc_vocabulary(source)
    manifest = Manifest(
        source=ModelSource("tiny", None, "0" * 64, type(model).__name__),
        task=task,
        artifacts=(artifact,),
        producer={},
        preprocess={"audio": data},
        postprocess=postprocess,
    )
    return make_pipeline(manifest, None, Session(artifact, TorchSounds(model, names)))
