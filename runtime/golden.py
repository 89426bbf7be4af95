"""Golden vectors: inputs with what the reference makes of them, one JSON object a line.

They are what a phone, a CI job without torch, or a tokenizer in another language checks itself against. A line holds

- `name`, and the input: `text`, `text_pair`, or `choices` (one encoding each), with `options` (`max_length`,
  `truncation`, maybe `pad_to`); or `inputs`, tensors of a model that takes no text, as `{dtype, shape,
  base64}` (little-endian); or `image` or `audio`, a file of the bundle, with `processed`, values of what the manifest's
  `preprocess` makes of it (in the form of `outputs`), and in `inputs` the tensors that are not made of it;
- `encoding`: `input_ids`, `attention_mask`, `token_type_ids` (those the model takes) and `offsets`, pairs of code-point
  positions in `text` (in `text_pair` after the first separator);
- of a model that generates, maybe `generated`: `ids`, what it says next when it takes the likeliest token each time,
  and `margins`, how far ahead of the second each of them was;
- `outputs`: for each output `{shape, every, values}`: the reference's values at flat positions 0, every, 2*every,
  ... of the output with padded positions left out. `shape` is that of the output so cropped.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DamagedError
from .records import read_records, write_records

# Kinds of files that a golden vector may be made from.
MEDIA = ("image", "audio")
Prepare = Callable[[str, str], dict[str, np.ndarray]]

# What another version of an image library may differ by: about two levels of 255.
_PROCESSED_TOLERANCE = 0.02

# Outputs larger than this are sampled. A prime stride visits every column of a matrix in turn.
MOST_VALUES = 512


# The input of an encoder-decoder with what its decoder goes on from.
DECODER_IDS = "decoder_input_ids"


@dataclass(frozen=True)
class Expected:
    """The reference's values of one output: all of them (`every` 1) or each `every`-th of the flattened output."""

    shape: tuple[int, ...]
    every: int
    values: np.ndarray

    def pick(self, actual: np.ndarray) -> np.ndarray:
        """The same positions of an artifact's output of this shape."""
        return actual.reshape(-1)[:: self.every]

    @classmethod
    def of(cls, array: np.ndarray, most: int | None = MOST_VALUES) -> Expected:
        """Record an output, sampled when it has more than `most` values."""
        every = 1 if most is None or array.size <= most else _prime_at_least(-(-array.size // most), array.shape[-1])
        return cls(tuple(array.shape), every, array.reshape(-1)[::every])


@dataclass(frozen=True)
class Continuation:
    """What the reference says when it takes the likeliest token each time, and by how much each was likeliest."""

    ids: tuple[int, ...]
    margins: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"ids": list(self.ids), "margins": list(self.margins)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Continuation:
        ids, margins = tuple(map(int, record["ids"])), tuple(map(float, record["margins"]))
        if len(ids) != len(margins) or min(ids, default=0) < 0:
            raise ValueError(f"{len(ids)} tokens with {len(margins)} margins")
        return cls(ids, margins)


@dataclass(frozen=True)
class GoldenCase:
    """One golden vector. `encoding` arrays made from text have no batch axis (for `choices`: one row a choice).

    media: what kind of file it is made from, `image` or `audio`, and its path in the bundle. made: the names of the
    tensors in `encoding` that are made of it. continued: the ids that an encoder-decoder's decoder is compared on.
    generated: what the reference says after the input.
    """

    name: str
    encoding: dict[str, np.ndarray]
    outputs: dict[str, Expected]
    text: str | None = None
    text_pair: str | None = None
    choices: tuple[str, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    offsets: list[list[int]] | None = None
    media: tuple[str, str] | None = None
    made: tuple[str, ...] = ()
    continued: tuple[int, ...] = ()
    generated: Continuation | None = None

    def feeds(self) -> dict[str, np.ndarray]:
        """The model's inputs: those made from text with a batch axis of one, tensors as they are."""
        decoder = {DECODER_IDS: np.array([self.continued], np.int64)} if self.continued else {}
        if self.text is None:
            return {**self.encoding, **decoder}
        return {**{name: array[None] for name, array in self.encoding.items()}, **decoder}

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"name": self.name}
        if self.text is not None:
            record["text"] = self.text
            record["text_pair"] = self.text_pair
            if self.choices is not None:
                record["choices"] = list(self.choices)
            record["options"] = self.options
            record["encoding"] = {name: array.tolist() for name, array in self.encoding.items()}
            record["encoding"]["offsets"] = self.offsets
        else:
            packed = {name: array for name, array in self.encoding.items() if name not in self.made}
            record["inputs"] = {name: _packed(array) for name, array in packed.items()}
        if self.media is not None:
            kind, path = self.media
            record[kind] = path
            record["processed"] = {name: _sampled(Expected.of(self.encoding[name])) for name in self.made}
        if self.continued:
            record[DECODER_IDS] = list(self.continued)
        if self.generated is not None:
            record["generated"] = self.generated.to_json()
        record["outputs"] = {name: _sampled(expected) for name, expected in self.outputs.items()}
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any], prepare: Prepare | None = None) -> GoldenCase:
        case = cls._read(record, prepare)
        generated = Continuation.from_json(record["generated"]) if "generated" in record else None
        return dataclasses.replace(case, continued=tuple(map(int, record.get(DECODER_IDS, ()))), generated=generated)

    @classmethod
    def _read(cls, record: dict[str, Any], prepare: Prepare | None) -> GoldenCase:
        outputs = {name: _expected(entry) for name, entry in record["outputs"].items()}
        if "inputs" in record:
            encoding = {name: _unpacked(entry) for name, entry in record["inputs"].items()}
            media = next(((kind, record[kind]) for kind in MEDIA if kind in record), None)
            if media is None:
                return cls(record["name"], encoding, outputs)
            wanted = {name: _expected(entry) for name, entry in record["processed"].items()}
            made = prepare(*media) if prepare is not None else {}
            _check_processed(media[1], made, wanted)
            encoding |= {name: made[name] for name in wanted}
            return cls(record["name"], encoding, outputs, media=media, made=tuple(wanted))
        arrays = {name: np.array(values, np.int64) for name, values in record["encoding"].items() if name != "offsets"}
        offsets, options = record["encoding"]["offsets"], record["options"]
        shapes = {array.shape for array in arrays.values()} | {np.array(offsets, np.int64).shape[:-1]}
        if len(shapes) != 1:
            raise ValueError("inputs and offsets of different lengths")
        if not isinstance(record["text"], str) or not {"max_length", "truncation"} <= set(options):
            raise ValueError("no text, or not how it was cut")
        return cls(
            record["name"],
            arrays,
            outputs,
            text=record["text"],
            text_pair=record["text_pair"],
            choices=tuple(record["choices"]) if "choices" in record else None,
            options=options,
            offsets=offsets,
        )


def write_golden(path: Path, cases: list[GoldenCase]) -> None:
    """Write cases, one a line, the same bytes for the same cases."""
    write_records(path, (case.to_json() for case in cases))


def read_golden(path: Path, prepare: Prepare | None = None) -> list[GoldenCase]:
    """Read cases. Raises DamagedError naming the line that is not one.

    Args:
        prepare: makes the model's inputs, with a leading axis of 1, of a picture or a sound: called with `image` or
            `audio` and a path in the bundle.
    """
    cases = read_records(path, lambda record: GoldenCase.from_json(record, prepare))
    if not cases:
        raise DamagedError(f"{path.name} holds no golden vectors.")
    return cases


def _check_processed(path: str, made: dict[str, np.ndarray], wanted: dict[str, Expected]) -> None:
    for name, expected in wanted.items():
        found = made.get(name)
        if found is None or found.shape != expected.shape:
            raise ValueError(f"{path} becomes {name} {[] if found is None else list(found.shape)}")
        scale = max(float(np.abs(expected.values).max(initial=0.0)), 1.0)
        if np.abs(expected.pick(found) - expected.values).max(initial=0.0) > _PROCESSED_TOLERANCE * scale:
            raise ValueError(f"{path} becomes other values in {name} than at export")


def _sampled(expected: Expected) -> dict[str, Any]:
    return {"shape": list(expected.shape), "every": expected.every, "values": _numbers(expected.values)}


def _numbers(values: np.ndarray) -> list[float | int | str]:
    """Shortest decimal of each fp32; JSON has no NaN or infinity, so those are strings."""
    if values.dtype.kind in "biu":
        return values.tolist()
    narrow = values.astype(np.float32)
    return [float(str(value)) if np.isfinite(value) else str(value) for value in narrow]


def _expected(entry: dict[str, Any]) -> Expected:
    shape, every = tuple(map(int, entry["shape"])), int(entry["every"])
    values = np.array([_number(value) for value in entry["values"]], np.float64)
    if every < 1 or min(shape, default=0) < 0 or len(values) != -(-math.prod(shape) // every):
        raise ValueError(f"{len(values)} values, each {every}th of shape {list(shape)}")
    return Expected(shape, every, values)


def _number(value: float | str) -> float:
    return float(value)


def _packed(array: np.ndarray) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def _unpacked(entry: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(entry["base64"], validate=True)
    dtype = np.dtype(entry["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {entry['dtype']}")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(entry["shape"])


def _prime_at_least(least: int, columns: int) -> int:
    """The first prime from `least` on that does not divide the last axis, so that samples fall in every column."""
    candidate = max(least, 2)
    while any(candidate % divisor == 0 for divisor in range(2, int(candidate**0.5) + 1)) or columns % candidate == 0:
        candidate += 1
    return candidate
