"""`tokenizer_spec.json`: the tokenizer in a form for small readers. `docs/tokenizer-spec.md` is the page on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import DamagedError
from .schema import fault

SPEC_VERSION = 1
SPEC_NAME = "tokenizer_spec.json"


def tokenizer_spec_schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of `tokenizer_spec.json`."""
    return json.loads(Path(__file__).with_name("tokenizer_spec.schema.json").read_text(encoding="utf-8"))


def check_tokenizer_spec(data: Any, where: str = SPEC_NAME) -> dict[str, Any]:
    """The specification itself, when it is one that this version knows.

    Raises:
        DamagedError: not a specification, a newer version, or a step that the page does not have.
    """
    if not isinstance(data, dict) or data.get("format") != "palmtop-tokenizer":
        raise DamagedError(f"{where} is not a palmtop tokenizer specification.")
    version = data.get("spec_version")
    if isinstance(version, int) and version > SPEC_VERSION:
        raise DamagedError(
            f"{where} is of version {version}; this palmtop reads up to {SPEC_VERSION}. "
            "Upgrade palmtop, or export the bundle again with this version."
        )
    wrong = fault(tokenizer_spec_schema(), _shortened(data))
    if wrong is not None:
        message, at = wrong
        raise DamagedError(
            f"{where} is not a valid tokenizer specification: {message[:300]} (at {at or 'the top level'})."
        )
    return data


def _shortened(data: dict[str, Any]) -> dict[str, Any]:
    """The specification with the head of each long list: a validator takes seconds over a real vocabulary."""
    model = data.get("model")
    short = {key: value[:100] if isinstance(value, list) else value for key, value in data.items()}
    if isinstance(model, dict):
        short["model"] = {key: value[:100] if isinstance(value, list) else value for key, value in model.items()}
    return short


def read_tokenizer_spec(path: Path) -> dict[str, Any]:
    """Read and check a specification. Raises DamagedError when it is missing or not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {error}.") from error
    return check_tokenizer_spec(data, str(path))
