"""Conversations with an exported decoder: tokens in, logits of the next token out, the cache kept in between.

How an artifact keeps its cache is read off its signature:

- growing: inputs `past_key_0`, ... with an axis `past`, outputs `present_key_0`, ... that are longer by the tokens fed;
- fixed: the same tensors of constant size, and an input `start` that says how many positions are filled;
- states: `start`, and tensors that the engine keeps (`Session.new_state`);
- none: neither, and the whole sequence is run for every token.

Caches go from one step's outputs to the next step's inputs as the arrays that the engine gave: none of the engines
copies them (measured with ONNX Runtime: the same time as with its own bindings).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError
from ..manifest import CACHE_LAYOUT, Dim, TensorSpec
from ..session import Session

TOKENS = ("decoder_input_ids", "input_ids")
START, LOGITS = "start", "logits"
PAST, PRESENT = "past_", "present_"


@dataclass
class _Part:
    """Rows that run together: their cache or states, the tokens so far, what the encoder gave.

    `origins` are the rows of the encoder's outputs that `beside` has.
    """

    cache: dict[str, np.ndarray]
    state: Any
    ids: np.ndarray
    beside: dict[str, np.ndarray]
    origins: list[int]

    @property
    def rows(self) -> int:
        return len(self.ids)


class Decoder:
    """A decoder artifact, of which `start` begins conversations. They may take turns.

    Args:
        context: how many tokens a conversation may hold; None: as many as the artifact's sizes allow.
    """

    def __init__(self, session: Session, context: int | None = None):
        artifact = session.artifact
        self.session = session
        specs = {spec.name: spec for spec in artifact.inputs}
        self.tokens = next((name for name in TOKENS if name in specs), "")
        if not self.tokens or artifact.output(LOGITS) is None:
            raise DamagedError(
                f"{artifact.path} is no decoder: it takes {', '.join(specs)} and gives "
                f"{', '.join(spec.name for spec in artifact.outputs)}. Export the bundle again."
            )
        self.batch, self.sequence = specs[self.tokens].dims[0], specs[self.tokens].dims[-1]
        self.caches = tuple(spec for spec in artifact.inputs if spec.name.startswith(PAST))
        self.counts = START in specs
        self.others = tuple(name for name in specs if name not in (self.tokens, START) and not name.startswith(PAST))
        self.stateful = bool(artifact.states)
        self.cached = bool(self.caches) or self.stateful
        # Keys and values beyond `start` are not looked at: a state of them can be set back to fewer tokens.
        self.rewinds = self.counts and all(spec.layout == CACHE_LAYOUT for spec in artifact.states)
        for spec in self.caches:
            if artifact.output(_present(spec.name)) is None:
                raise DamagedError(f"{artifact.path} takes {spec.name} and gives no {_present(spec.name)}.")
        known = [size for size in (context, self._room()) if size is not None]
        self.context = min(known) if known else None

    def _room(self) -> int | None:
        """How many tokens the sizes of the cache allow; None: they set no limit."""
        if not self.cached:
            return self.sequence.largest
        if not self.counts:
            return None
        sizes = [spec.dims[2].constant for spec in self.caches] if self.caches else []
        return min((size for size in sizes if size is not None), default=None)

    def start(self, encoder_outputs: Mapping[str, np.ndarray] | None = None, rows: int = 1) -> Conversation:
        """A conversation that nothing was said in, with a cache or a state of its own.

        Args:
            encoder_outputs: what a decoder takes beside tokens and cache, by name, leading axis rows.
            rows: how many sequences of one length it begins with.
        """
        given = dict(encoder_outputs or {})
        absent = [name for name in self.others if name not in given]
        if absent:
            raise RequestError(f"{self.session.artifact.path} needs {', '.join(absent)}, which the encoder gives.")
        return Conversation(self, {name: given[name] for name in self.others}, rows)

    def chunk(self, length: int) -> int:
        """How many of `length` tokens the next call takes: the most that the artifact's sequence axis admits."""
        if self.sequence.admits(length):
            return length
        sizes = _sizes(self.sequence, length)
        if not sizes:
            raise RequestError(
                f"{self.session.artifact.path} takes {self.sequence} tokens at a time; {length} cannot be split so."
            )
        return max(sizes)

    def empty(self, spec: TensorSpec, rows: int) -> np.ndarray:
        """The cache tensor before the first token: no positions, or positions of zeros."""
        dims = (rows, *(0 if dim.constant is None else dim.constant for dim in spec.dims[1:]))
        return np.zeros(dims, spec.dtype)


class Conversation:
    """What has been said to a decoder so far, in one row or, for beams, in several of the same length."""

    def __init__(self, decoder: Decoder, encoder_outputs: dict[str, np.ndarray], rows: int):
        self.decoder = decoder
        self.length = 0
        self._given = encoder_outputs
        together = [[row] for row in range(rows)] if decoder.batch.constant == 1 else [list(range(rows))]
        self._parts = [
            _Part(
                {spec.name: decoder.empty(spec, len(group)) for spec in decoder.caches},
                decoder.session.new_state(),
                np.zeros((len(group), 0), np.int64),
                self._beside(group),
                group,
            )
            for group in together
        ]

    def _beside(self, origins: list[int]) -> dict[str, np.ndarray]:
        return {name: array[origins] for name, array in self._given.items()}

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self._parts)

    def feed(self, ids: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
        """Say some more tokens, (rows, S) with S at least 1. A long prompt is fed in pieces that the artifact takes.

        Returns:
            The logits (rows, vocabulary) of what follows the last of them, in float32.

        Raises:
            RequestError: more tokens than the model's context holds.
        """
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 2 or ids.shape[0] != self.rows or ids.shape[1] < 1:
            raise RequestError(f"A conversation of {self.rows} rows cannot go on with tokens of shape {ids.shape}.")
        context = self.decoder.context
        if context is not None and self.length + ids.shape[1] > context:
            raise RequestError(
                f"The model's context is {context} tokens; {self.length} are in it and {ids.shape[1]} more do not fit. "
                "Shorten the prompt, or ask for fewer new tokens."
            )
        for piece in self._pieces(ids):
            logits = self._run(piece)
        return logits

    def _pieces(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """Tokens in as many calls as the artifact needs."""
        fed = 0
        while fed < ids.shape[1]:
            size = self.decoder.chunk(ids.shape[1] - fed) if self.decoder.cached else ids.shape[1]
            yield ids[:, fed : fed + size]
            fed += size

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one may be taken several times, others are forgotten.

        Raises:
            RequestError: the engine keeps what is no cache of keys and values, so that one row cannot become two.
        """
        rows = [int(row) for row in rows]
        if rows == list(range(self.rows)):
            return
        if self.decoder.stateful:
            if not self.decoder.rewinds:
                raise RequestError(
                    f"{self.decoder.session.artifact.path} keeps what it has read as state, which cannot be set back "
                    "for beams. Ask for num_beams=1."
                )
            self._parts = self._rewound(rows)
            return
        if self.decoder.batch.constant == 1:  # one part a row; what engines give is never written into, so it is shared
            self._parts = [self._parts[row] for row in rows]
            return
        (part,) = self._parts
        origins = [part.origins[row] for row in rows]
        beside = part.beside if origins == part.origins else self._beside(origins)
        cache = {name: array[rows] for name, array in part.cache.items()}
        self._parts = [_Part(cache, None, part.ids[rows], beside, origins)]

    def _rewound(self, rows: list[int]) -> list[_Part]:
        """Parts that have read what these rows have, none of whose states can be copied.

        A row goes on with its own state, once. Every other time it is taken, a state that is free now (or a new one) is
        set back to the tokens that it has in common with the row, and reads the rest.
        """
        free = [part for row, part in enumerate(self._parts) if row not in rows]
        parts: list[_Part] = []
        for place, row in enumerate(rows):
            part = self._parts[row]
            if row in rows[:place]:
                other = max(free, key=lambda each, part=part: _common(each, part), default=None)  # type: ignore[misc]
                if other is None:
                    other = dataclasses.replace(part, state=self.decoder.session.new_state(), ids=part.ids[:, :0])
                else:
                    free.remove(other)
                shared, ids = _common(other, part), part.ids
                part = dataclasses.replace(part, state=other.state, ids=ids[:, :shared])
                for piece in self._pieces(ids[:, shared:]):
                    _, part = self._step(part, piece)
            parts.append(part)
        return parts

    def _run(self, ids: np.ndarray) -> np.ndarray:
        logits, parts, row = [], [], 0
        for part in self._parts:
            found, after = self._step(part, ids[row : row + part.rows])
            logits.append(found)
            parts.append(after)
            row += part.rows
        self._parts = parts
        self.length += ids.shape[1]
        return np.concatenate(logits) if len(logits) > 1 else logits[0]

    def _step(self, part: _Part, ids: np.ndarray) -> tuple[np.ndarray, _Part]:
        decoder = self.decoder
        said = np.concatenate([part.ids, ids], axis=1)
        feeds = {decoder.tokens: ids if decoder.cached else said, **part.cache, **part.beside}
        if decoder.counts:
            feeds[START] = np.array([part.ids.shape[1]], np.int64)
        outputs = decoder.session.run(feeds, part.state)
        cache = {name: outputs[_present(name)] for name in part.cache}
        logits = outputs[LOGITS][:, -1].astype(np.float32)
        return logits, dataclasses.replace(part, cache=cache, ids=said)


def _common(one: _Part, other: _Part) -> int:
    """How many first tokens two rows share; none when encoders gave them different things."""
    if one.origins != other.origins:
        return 0
    size = min(one.ids.shape[1], other.ids.shape[1])
    return int(np.logical_and.accumulate(one.ids[0, :size] == other.ids[0, :size]).sum())


def _present(name: str) -> str:
    return PRESENT + name.removeprefix(PAST)


def _sizes(dim: Dim, most: int) -> list[int]:
    """The largest size that an axis admits and that is not above `most`, if there is one."""
    if dim.constant is not None:
        return [dim.constant] if dim.constant <= most else []
    if dim.values is not None:
        return [value for value in dim.values if value <= most]
    size = most if dim.max is None else min(most, dim.max)
    return [size] if size >= (dim.min or 0) else []
