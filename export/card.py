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

from ..runtime.manifest import Manifest
from ..runtime.reports import Report

# Sections of a source card that a mobile card must not lose, by words in their headings.
_CARRIED = (
    "data",
    "bias",
    "limitation",
    "risk",
    "license",
    "intended",
    "performance",
    "evaluation",
    "ethic",
    "citation",
)


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


def write_card(source: ModelCard, manifest: Manifest, report: Report, sizes: dict[str, int]) -> str:
    """The bundle's README.md: what it is, sizes, parity, and the source card's data, bias and license sections.

    Latency is not in it: it belongs to a device, and would make no two bundles the same.
    """
    about = manifest.source
    front: dict[str, Any] = {"library_name": "palmtop", "pipeline_tag": manifest.task}
    for key in ("license", "license_name", "license_link", "language", "datasets"):
        if key in source.metadata:
            front[key] = source.metadata[key]
    revision = f" at revision `{about.revision}`" if about.revision else ""
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=True, allow_unicode=True).strip(),
        "---",
        "",
        f"# {about.id} for mobile",
        "",
        f"`{about.architecture}` for **{manifest.task}**, exported from `{about.id}`{revision} by palmtop "
        f"{manifest.producer.get('palmtop', '')}. Weights SHA-256 `{about.weights_sha256}`.",
        "",
        "## Artifacts",
        "",
        "| target | file | size | precision | oldest system | inputs |",
        "| --- | --- | ---: | --- | --- | --- |",
    ]
    for artifact in manifest.artifacts:
        systems = ", ".join(f"{_SYSTEMS.get(key, key)} {value}" for key, value in artifact.minimum_os.items()) or "any"
        inputs = "; ".join(f"`{spec.name}` [{', '.join(map(str, spec.dims))}]" for spec in artifact.inputs)
        lines.append(
            f"| {artifact.target} | `{artifact.path}` | {sizes[artifact.path] / 1e6:.1f} MB | {artifact.precision} "
            f"| {systems} | {inputs} |"
        )
    lines += _quantization_lines(manifest)
    lines += _kept_lines(manifest)
    lines += [
        "",
        "## Parity",
        "",
        f"Measured against {report.reference}; errors are relative to the output's own scale, "
        "the agreement of quantized artifacts is the mean cosine of rows. Details: `parity.json`.",
        "",
        "| target | executed by | output | error or agreement | allowed | worst cosine | verdict |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for entry in report.artifacts:
        if not entry.measures:
            lines.append(f"| {entry.target} | {entry.status}: {entry.reason} | | | | | {entry.status} |")
        for measure in entry.measures:
            lines.append(
                f"| {entry.target} | {entry.engine} | `{measure.output}` | {measure.found()} | {measure.asked()} "
                f"| {measure.cosine:.7f} | {entry.status} |"
            )
    lines += [
        "",
        "Latency depends on the device: `palmtop bench` measures it here, the sample apps on a phone.",
        "",
        "## License",
        "",
        f"The checkpoint states: {about.license}."
        if about.license
        else "The checkpoint states no license. Ask its authors.",
    ]
    carried = source.carried_sections()
    if carried:
        lines += ["", f"## From the card of {about.id}"]
        for heading, body in carried:
            # One level below the heading above, whatever level the section had.
            lines += ["", f"##{heading}" if heading.startswith("# ") else f"#{heading}", "", body]
    else:
        lines += ["", f"The checkpoint {about.id} has no model card sections on its data, bias or evaluation."]
    return "\n".join(lines).rstrip() + "\n"


def _quantization_lines(manifest: Manifest) -> list[str]:
    """How weights are stored, where a plan says so; the plan is one, whatever the format."""
    texts = dict.fromkeys(text for artifact in manifest.artifacts if (text := artifact.describe_quantization()))
    return ["", *(f"Quantized: {text}." for text in texts), "The plan, weight by weight: `plan.json`."] if texts else []


def _kept_lines(manifest: Manifest) -> list[str]:
    """Which modules stayed in fp32, and why."""
    lines: list[str] = []
    for artifact in manifest.artifacts:
        quantization = artifact.quantization or {}
        reasons = quantization.get("kept_because", {})
        for name in quantization.get("keep_fp32", ()):
            reason = reasons.get(name, "asked for")
            lines.append(f"- {artifact.target}: `{name or '(the model itself)'}`: {reason}")
    return ["", "Modules that compute in fp32 inside these artifacts:", "", *lines] if lines else []


_SYSTEMS = {"ios": "iOS", "macos": "macOS", "android": "Android"}
