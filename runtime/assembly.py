"""The artifacts of one target as one model: a single file, or the encoder and the decoder of a model that generates.

Whatever calls a model (verify, bench, pipelines on arrays) sees a signature and a session with `run`, and need not know
how many files there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from .manifest import Artifact, Dim, Manifest, TensorSpec
from .session import Session

# How many positions of a sequence a model that generates is compared at: the first of them after a prefill of all that
# comes before, the others one token at a time.
COMPARED = 8


def generates(artifacts: Sequence[Artifact]) -> bool:
    """Whether these artifacts give text, a token at a time."""
    return any(artifact.method == "decoder" for artifact in artifacts)


def decoder_ids(artifacts: Sequence[Artifact]) -> str:
    """The input with the ids of what a decoder continues."""
    names = {spec.name for artifact in artifacts for spec in artifact.inputs}
    return "decoder_input_ids" if "decoder_input_ids" in names else "input_ids"


def signature(artifacts: Sequence[Artifact]) -> Artifact:
    """What the artifacts of a target are called with together.

    Of a model that generates: the encoder's inputs and the ids of the whole sequence in, the logits at its last
    `COMPARED` positions out.
    """
    if not generates(artifacts):
        return artifacts[0]
    decoder = next(artifact for artifact in artifacts if artifact.method == "decoder")
    encoder = next((artifact for artifact in artifacts if artifact.method == "encoder"), None)
    ids = decoder_ids(artifacts)
    vocabulary = next(spec for spec in decoder.outputs if spec.name == "logits").dims[-1]
    batch = next(spec for spec in decoder.inputs if spec.name == ids).dims[0]
    sequence = TensorSpec(ids, "int64", (batch, Dim(symbol="tokens", min=1)))
    logits = TensorSpec("logits", "float32", (batch, Dim(symbol="compared", min=1, max=COMPARED), vocabulary))
    inputs = (*(encoder.inputs if encoder is not None else ()), sequence)
    return dataclasses.replace(decoder, inputs=inputs, outputs=(logits,), states=())


def open_artifacts(
    root: Path, artifacts: Sequence[Artifact], manifest: Manifest, threads: int | None = None
) -> Session:
    """Load the artifacts of one target of the bundle at `root`. Errors as in `Session.open`."""
    if not generates(artifacts):
        return Session.open(root, artifacts[0], manifest.identity, threads)
    from .generation.session import GenerationSession

    return GenerationSession.open_all(root, artifacts, manifest, threads)
