"""What an app or a server needs to use a bundle. Imports no torch.

    from palmtop.runtime import load
    pipeline = load("intents.bundle")

Importing this package alone imports nothing heavy; numpy, tokenizers and the engine of a format come with `load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipelines import Pipeline

__all__ = ["load"]


def load(bundle: str | Path, target: str | None = None, threads: int | None = None) -> Pipeline:
    """Open a bundle as a pipeline for its task.

    Args:
        bundle: the folder that `palmtop export` made.
        target: which artifact to run (`onnx`, `coreml`, `executorch`); None: the first one that this machine executes.
        threads: number of CPU threads; None leaves the choice to the engine.

    Raises:
        RequestError: no such bundle or artifact, nothing here that executes it, or no pipeline for its task.
        DamagedError: the bundle is damaged, altered or made of parts of several bundles.
    """
    from .bundle import Bundle
    from .errors import DamagedError
    from .pipelines import make_pipeline, pipeline_class

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    # An unknown task is said before a large model is loaded.
    if pipeline_class(manifest).needs_tokenizer and manifest.tokenizer is None:
        raise DamagedError(f"The task '{manifest.task}' needs a tokenizer, and this bundle has none. Export it again.")
    return make_pipeline(manifest, opened.tokenizer(), opened.open_session(target, threads))
