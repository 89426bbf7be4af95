"""A model that generates as one model that can be compared: its artifacts, stepped through as generation does it.

The reference runs a whole sequence at once and without a cache. Here the same sequence goes through the exported
encoder and decoder: everything up to the first compared position at once, then a token at a time through the cache. So
what is compared is what an app will run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..assembly import COMPARED, decoder_ids, signature
from ..cause import Cause
from ..errors import DamagedError, RequestError
from ..manifest import Artifact, Manifest
from ..parity import Bound
from ..session import Session
from .decoder import Conversation, Decoder
from .generate import Job, forced
from .settings import Settings


class GenerationSession(Session):
    """The loaded artifacts of a target, called with the signature that `assembly.signature` gives them.

    `decoder` begins conversations; `encoder` is None for decoder-only models; `defaults`: the manifest's `generation`.
    """

    def __init__(
        self,
        artifact: Artifact,
        decoder: Decoder,
        encoder: Session | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        super().__init__(artifact, decoder.session.runner, decoder.session.path)
        self.decoder = decoder
        self.encoder = encoder
        self.defaults = dict(defaults or {})
        self.splits_batch = False  # rows are split here, where they have to be

    @classmethod
    def open_all(
        cls, root: Path, artifacts: Sequence[Artifact], manifest: Manifest, threads: int | None = None
    ) -> GenerationSession:
        """Load the artifacts of one target of the bundle at `root`. Errors as in `Session.open`."""
        sessions = {artifact.method: Session.open(root, artifact, manifest.identity, threads) for artifact in artifacts}
        if "decoder" not in sessions:
            raise DamagedError(f"{artifacts[0].path} has no decoder beside it. Export the bundle again.")
        decoder = Decoder(sessions["decoder"], manifest.generation.get("context"))
        return cls(signature(artifacts), decoder, sessions.get("encoder"), manifest.generation)

    def encode(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a decoder takes beside its tokens: the encoder's outputs, and those of its inputs that serve both."""
        return {} if self.encoder is None else {**feeds, **self.encoder.run(feeds)}

    def start(self, feeds: dict[str, np.ndarray] | None = None, rows: int = 1) -> Conversation:
        """A conversation about what the encoder reads in `feeds`, leading axis rows."""
        return self.decoder.start(self.encode(feeds or {}), rows)

    def run(self, feeds: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
        """The logits (rows, positions, vocabulary) of the last positions of a sequence, at most `COMPARED` of them.

        Raises:
            RequestError: an input is missing, or a size is outside what the artifacts take.
        """
        missing = [spec.name for spec in self.artifact.inputs if spec.name not in feeds]
        if missing:
            raise RequestError(f"Missing input {', '.join(missing)} for {self.artifact.path}.")
        ids = np.asarray(feeds[decoder_ids([self.artifact])], np.int64)
        if self.decoder.stateful and len(ids) > 1:  # each row has a state, which may be as large as the weights
            rows = [self.run({name: feeds[name][row : row + 1] for name in feeds}) for row in range(len(ids))]
            return {"logits": np.concatenate([row["logits"] for row in rows])}
        conversation = self.start(feeds, len(ids))
        first = ids.shape[1] - min(COMPARED, ids.shape[1]) + 1
        found = [conversation.feed(ids[:, :first])]
        found += [conversation.feed(ids[:, place : place + 1]) for place in range(first, ids.shape[1])]
        return {"logits": np.stack(found, axis=1)}

    def choices(self, feeds: dict[str, np.ndarray], said: Sequence[int]) -> Iterator[int]:
        """The likeliest token at each place of what is said after the only row of `feeds`, given what is said before.

        Raises:
            RequestError: the input does not fit.
        """
        settings = Settings.of(self.defaults, do_sample=False, num_beams=1, max_new_tokens=len(said))
        ids = feeds["input_ids"] if self.encoder is None else np.array([[settings.first_token]])
        job = Job(
            lambda: self.start(feeds),
            tuple(ids[0].tolist()),
            settings,
            self.decoder.context,
            feeds.get("input_ids") if self.encoder is not None else None,
        )
        return forced(job, said)

    def diagnose(self, feeds: dict[str, np.ndarray], bound: Bound) -> Cause | None:
        """Not known: the operations of a single artifact do not see the steps."""
        return None
