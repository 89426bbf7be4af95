"""The eager checkpoint as a session, so that what runs artifacts (pipelines, bench, metrics) runs the model itself.

As a program, `python -m palmtop.export.eager BUNDLE SOURCE REVISION TRUST`, it is the cold start of PyTorch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..runtime import coldstart
from ..runtime.bench import Contender
from ..runtime.bench_report import EAGER
from ..runtime.bundle import Bundle
from ..runtime.errors import PalmtopError, RequestError
from ..runtime.manifest import Artifact
from ..runtime.pipelines import pipeline_over
from ..runtime.session import Session
from .capture import flat_tensors
from .reference import Reference
from .source import open_source
from .subject import checkpoint_subject


@dataclass(frozen=True)
class Eager:
    """A checkpoint as a session, the bytes of its weights in fp32, and what a reader of its figures must know."""

    session: Session
    size: int
    note: str | None


class EagerRunner:
    """A reference on numpy arrays, without gradients, on as many threads as PyTorch was given."""

    identity: str | None = None

    def __init__(self, reference: Reference):
        self._reference = reference
        self._outputs = [spec.name for spec in reference.outputs]
        self.engine = f"PyTorch {torch.__version__.partition('+')[0]}, eager"

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
        with torch.no_grad():
            results = flat_tensors(self._reference.call(self._reference.model, inputs))
        return {name: value.numpy() for name, value in zip(self._outputs, results, strict=True)}


def eager_session(
    bundle: Bundle, source: str, revision: str | None, trust_remote_code: bool, threads: int | None
) -> Eager:
    """The checkpoint that a bundle was made of (or another) as a session.

    Raises:
        RequestError: the bundle is not of a checkpoint, or the source cannot be opened for its task.
        DamagedError: the checkpoint is damaged.
    """
    spec = bundle.manifest.tokenizer
    if bundle.manifest.task == "module":
        raise RequestError("This bundle was made from a module, not a checkpoint: leave --reference out.")
    opened = open_source(source, task=bundle.manifest.task, revision=revision, trust_remote_code=trust_remote_code)
    if threads is not None:
        torch.set_num_threads(threads)
    subject = checkpoint_subject(opened, spec.max_length if spec is not None else None)
    reference = subject.reference
    artifact = Artifact(
        target=EAGER,
        path=source,
        precision="fp32",
        inputs=subject.inputs,
        outputs=reference.outputs,
    )
    note = None
    if opened.weights_sha256() != bundle.manifest.source.weights_sha256:
        note = "its weights are not those that the bundle was made of"
    tensors = {id(tensor): tensor for tensor in (*reference.model.parameters(), *reference.model.buffers())}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Eager(Session(artifact, EagerRunner(reference)), size, note)


def eager_contender(
    bundle: Bundle, source: str, revision: str | None, trust_remote_code: bool, threads: int
) -> Contender:
    """The eager checkpoint as what artifacts are measured against. Errors as in `eager_session`."""
    eager = eager_session(bundle, source, revision, trust_remote_code, threads)
    arguments = [str(bundle.root), source, revision or "", "yes" if trust_remote_code else ""]
    return Contender(
        EAGER,
        eager.session,
        pipeline_over(bundle.manifest, bundle.tokenizer(), eager.session),
        eager.size,
        lambda text, threads: coldstart.measure(arguments, text, threads, module="palmtop.export.eager"),
        eager.note,
    )


def _prepare(request: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    root, source, revision, trust = sys.argv[1:5]
    imported = time.time()
    bundle = Bundle.open(root)
    eager = eager_session(bundle, source, revision or None, bool(trust), request["threads"])
    pipeline: Any = pipeline_over(bundle.manifest, bundle.tokenizer(), eager.session)
    text = request["text"]
    if pipeline is None or text is None:
        raise RequestError(f"No pipeline runs the task '{bundle.manifest.task}'.")
    return lambda: pipeline(text), imported


if __name__ == "__main__":
    try:
        coldstart.report(_prepare)
    except PalmtopError as error:
        sys.exit(str(error))
