"""The table of contents of a bundle: everything an app needs to know, in one JSON document.

The dataclasses here and `manifest.schema.json` beside them say the same thing; a test holds them together. The schema
is the published form, for readers in other languages.

A manifest holds no timestamp and no absolute path, and its JSON is canonical (sorted keys, two-space indent, UTF-8,
one newline at the end), so the same checkpoint, options and tool versions give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DamagedError
from .schema import fault

SCHEMA_VERSION = 1
MIN_READER_VERSION = 1
MANIFEST_NAME = "manifest.json"

# What the identity does not cover: itself, and what can only be known once the artifacts that carry it exist.
_OUTSIDE_IDENTITY = ("identity", "files", "parity")


@dataclass(frozen=True)
class Dim:
    """One axis of a tensor.

    A plain constant axis has `size`. Any other has a `symbol` (axes with one symbol have one size in one call) and
    either `values`, the sizes it may take, or a range `min`..`max` (`max` None: no upper bound). An axis with a symbol
    and one value is constant too, and still says what it counts: a sequence fixed at 128 is `sequence` in `[128]`.
    """

    size: int | None = None
    symbol: str | None = None
    min: int | None = None
    max: int | None = None
    values: tuple[int, ...] | None = None

    @property
    def constant(self) -> int | None:
        """The one size the axis can have; None when it varies."""
        if self.values is not None and len(self.values) == 1:
            return self.values[0]
        return self.size

    @property
    def is_constant(self) -> bool:
        return self.constant is not None

    def admits(self, size: int) -> bool:
        """Whether the axis may have this size."""
        if self.size is not None:
            return size == self.size
        if self.values is not None:
            return size in self.values
        return size >= (self.min or 0) and (self.max is None or size <= self.max)

    def fit(self, size: int) -> int | None:
        """The smallest size this axis admits that is at least `size`; None when there is none."""
        if self.size is not None:
            return self.size if size <= self.size else None
        if self.values is not None:
            return min((value for value in self.values if value >= size), default=None)
        size = max(size, self.min or 0)
        return size if self.max is None or size <= self.max else None

    @property
    def largest(self) -> int | None:
        """The largest size this axis admits; None when there is no bound."""
        if self.size is not None:
            return self.size
        return max(self.values) if self.values is not None else self.max

    def to_json(self) -> int | dict[str, Any]:
        if self.size is not None:
            return self.size
        if self.values is not None:
            return {"symbol": self.symbol, "values": list(self.values)}
        return {"symbol": self.symbol, "min": self.min or 0, "max": self.max}

    @classmethod
    def from_json(cls, value: int | dict[str, Any]) -> Dim:
        if isinstance(value, int):
            return cls(size=value)
        if "values" in value:
            return cls(symbol=value["symbol"], values=tuple(value["values"]))
        return cls(symbol=value["symbol"], min=value["min"], max=value["max"])

    def __str__(self) -> str:
        if self.size is not None:
            return str(self.size)
        if self.values is not None:
            return f"{self.symbol}∈{{{','.join(map(str, self.values))}}}"
        return f"{self.symbol}={self.min or 0}..{'' if self.max is None else self.max}"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an artifact. `dtype` is numpy's name of it (`int32`, `float32`, ...)."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]

    def dim(self, symbol: str) -> Dim | None:
        """The axis of that symbol, if there is one."""
        return next((dim for dim in self.dims if dim.symbol == symbol), None)


# The layout of states that hold keys and values: what lies behind the positions that `start` counts is never read.
CACHE_LAYOUT = "batch,heads,context,depth"


@dataclass(frozen=True)
class StateSpec:
    """One state of an artifact: a tensor that the runtime keeps between calls."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]
    layout: str


@dataclass(frozen=True)
class Artifact:
    """One lowered file. `path` is relative to the bundle and may be a folder (`.mlpackage`).

    `methods` maps the method of the model that it is (`forward`; of models that generate `encoder`, `decoder`) to the
    entry point in the file.
    `minimum_os` is the oldest system that runs it (`{"ios": "16.0"}`), empty when the format sets none.
    `image_inputs` are inputs that the file takes as pictures and prepares itself (`export/image_input.py`); elsewhere,
    in `inputs` too, they are the arrays of prepared pictures.
    """

    target: str
    path: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quantization: dict[str, Any] | None = None
    minimum_os: dict[str, str] = field(default_factory=dict)
    states: tuple[StateSpec, ...] = ()
    methods: dict[str, str] = field(default_factory=lambda: {"forward": "forward"})
    image_inputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return next(iter(self.methods))

    def output(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.outputs if spec.name == name), None)

    def describe_quantization(self) -> str | None:
        """How its weights are stored and what it was held to, in a line; None without a plan."""
        stated = self.quantization or {}
        if not stated.get("weights"):
            return None
        schemes = ", ".join(f"{count} weights {scheme}" for scheme, count in stated["weights"].items())
        where = " on texts held back from calibration" if "judged_on" in stated else ""
        return f"{schemes}; agreement ({stated['metric']}) of at least {stated['min_agreement']:g}{where}"


@dataclass(frozen=True)
class File:
    """One file of the bundle: its bundle-relative path with `/`, its role, size in bytes and SHA-256."""

    path: str
    role: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelSource:
    """Where the model came from.

    `weights_sha256` is that of the checkpoint's one `.safetensors` file; of several, that of the list of them as
    `sha256sum` prints it; of a module in memory, that of its parameters.
    """

    id: str
    revision: str | None
    weights_sha256: str
    architecture: str
    model_type: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class TokenizerSpec:
    """How text becomes ids: what a reader must know beside the vocabulary files in `path`.

    `special_ids` maps role (`pad`, `cls`, `sep`, `mask`, `unk`, `bos`, `eos`) to id.
    `inputs` are the model inputs that the tokenizer makes, in the order of the artifact signatures.
    `input_pad` gives the value that pads each of them (`{"input_ids": 0, "attention_mask": 0, ...}`).
    """

    path: str
    kind: str
    tokenizer_class: str
    max_length: int
    truncation_side: str
    padding_side: str
    pad_to_multiple_of: int | None
    special_tokens: dict[str, str]
    special_ids: dict[str, int]
    inputs: tuple[str, ...]
    input_pad: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """A bundle's table of contents. See `docs/bundle.md` for each field."""

    source: ModelSource
    task: str
    artifacts: tuple[Artifact, ...]
    producer: dict[str, str]
    files: tuple[File, ...] = ()
    tokenizer: TokenizerSpec | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    identity: str = ""
    schema_version: int = SCHEMA_VERSION
    min_reader_version: int = MIN_READER_VERSION

    @property
    def targets(self) -> tuple[str, ...]:
        """The formats in the bundle, in their order."""
        return tuple(dict.fromkeys(artifact.target for artifact in self.artifacts))

    def parts(self, target: str) -> tuple[Artifact, ...]:
        """The artifacts of a target: one, or one for each method of a model that generates."""
        return tuple(artifact for artifact in self.artifacts if artifact.target == target)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, dims in their short form."""
        return _plain(self)

    def dumps(self) -> str:
        """The canonical text of the manifest."""
        return canonical_json(self.to_json())

    def compute_identity(self) -> str:
        """SHA-256 (hex) of everything in the manifest but `identity`, `files` and `parity`.

        It covers the source weights, the task, every signature and all pre- and post-processing, and is known before
        the artifacts are written, so that each artifact can carry it.
        """
        content = {key: value for key, value in self.to_json().items() if key not in _OUTSIDE_IDENTITY}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_identity(self) -> Manifest:
        return dataclasses.replace(self, identity=self.compute_identity())

    @classmethod
    def from_json(cls, data: Any, where: str = MANIFEST_NAME) -> Manifest:
        """Read a manifest, refusing anything that the schema does not allow.

        Raises:
            DamagedError: not a manifest, a newer schema than this reader knows, or an altered one.
        """
        if not isinstance(data, dict):
            raise DamagedError(f"{where} is not a palmtop manifest: expected a JSON object.")
        needed = data.get("min_reader_version")
        if isinstance(needed, int) and needed > SCHEMA_VERSION:
            raise DamagedError(
                f"{where} needs a reader of schema version {needed}; this palmtop reads up to {SCHEMA_VERSION}. "
                "Upgrade palmtop, or export the bundle again with this version."
            )
        wrong = fault(manifest_schema(), data)
        if wrong is not None:
            message, at = wrong
            raise DamagedError(
                f"{where} is not a valid palmtop manifest: {message[:300]} (at {at or 'the top level'})."
            )
        manifest = cls(
            source=ModelSource(**data["source"]),
            task=data["task"],
            artifacts=tuple(_artifact(entry) for entry in data["artifacts"]),
            producer=data["producer"],
            files=tuple(File(**entry) for entry in data["files"]),
            tokenizer=_tokenizer(data["tokenizer"]) if data["tokenizer"] is not None else None,
            preprocess=data["preprocess"],
            postprocess=data["postprocess"],
            generation=data["generation"],
            parity=data["parity"],
            identity=data["identity"],
            schema_version=data["schema_version"],
            min_reader_version=data["min_reader_version"],
        )
        if manifest.identity != manifest.compute_identity():
            raise DamagedError(
                f"{where} was altered: its identity does not match its content. Export the bundle again."
            )
        return manifest

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest file. Raises DamagedError when it is missing, not JSON, or not valid."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedError(f"{path} cannot be read: {error}.") from error
        try:
            data = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{path} is not valid JSON: {error}.") from error
        try:
            return cls.from_json(data, where=str(path))
        except RecursionError as error:
            raise DamagedError(f"{path} is not a palmtop manifest: it is nested too deep.") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def canonical_json(value: Any) -> str:
    """Deterministic, diff-friendly JSON text: sorted keys, two spaces, UTF-8, no NaN, one newline at the end."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def manifest_schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of `manifest.json`."""
    return json.loads((Path(__file__).with_name("manifest.schema.json")).read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, Dim):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
        if plain.get("image_inputs") == {}:
            del plain["image_inputs"]  # stated where there are some
        return plain
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(entry["name"], entry["dtype"], tuple(Dim.from_json(dim) for dim in entry["dims"]))
        for entry in entries
    )


def _artifact(entry: dict[str, Any]) -> Artifact:
    states = tuple(
        StateSpec(state["name"], state["dtype"], tuple(Dim.from_json(dim) for dim in state["dims"]), state["layout"])
        for state in entry["states"]
    )
    return Artifact(
        **{
            **entry,
            "inputs": _tensors(entry["inputs"]),
            "outputs": _tensors(entry["outputs"]),
            "states": states,
        }
    )


def _tokenizer(entry: dict[str, Any]) -> TokenizerSpec:
    return TokenizerSpec(**{**entry, "inputs": tuple(entry["inputs"])})
