"""Model cards: reading the checkpoint's, writing the bundle's.

The bundle's card carries over what the checkpoint's card says of training data, bias, evaluation and license, and adds
what was measured on the artifacts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# Sections of a source card that a mobile card must not lose, by words in their headings.
_CARRIED = ("data", "bias", "limitation", "risk", "license", "intended", "performance", "evaluation", "ethic", "citation")


@dataclass(frozen=True)
class ModelCard:
    """A README.md: its YAML front matter and its sections (heading with its `#`s, body)."""

    metadata: dict[str, Any] = field(default_factory=dict)
    sections: tuple[tuple[str, str], ...] = ()

    @property
    def license(self) -> str | None:
        value = self.metadata.get("license")
        if isinstance(value, list):
            return ", ".join(map(str, value)) or None
        return str(value) if value else None

    def carried_sections(self) -> list[tuple[str, str]]:
        """The sections about data, bias, evaluation and license, each with all of its subsections, once."""
        kept: list[tuple[str, str]] = []
        depth = 0  # of the carried heading whose subsections follow
        for heading, body in self.sections:
            level = len(heading) - len(heading.lstrip("#"))
            if depth and level > depth:
                kept.append((heading, body))
            elif any(word in heading.lower() for word in _CARRIED):
                depth = level
                kept.append((heading, body))
            else:
                depth = 0
        return kept


def read_card(folder: Path) -> ModelCard:
    """The card of a checkpoint folder; an empty one when there is none or it cannot be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ModelCard()
    metadata: dict[str, Any] = {}
    match = re.match(r"\A---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    if match:
        text = text[match.end() :]
        try:
            loaded = yaml.safe_load(match.group(1))
        except yaml.YAMLError:
            loaded = None
        metadata = loaded if isinstance(loaded, dict) else {}
    return ModelCard(metadata, tuple(_sections(text)))


def _sections(text: str) -> list[tuple[str, str]]:
    sections: list[tuple[str, list[str]]] = []
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if not fenced and re.match(r"#{1,6}\s+\S", line):
            sections.append((line.strip(), []))
        elif sections:
            sections[-1][1].append(line)
    return [(heading, "\n".join(body).strip()) for heading, body in sections]
