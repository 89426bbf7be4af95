"""Show what was measured when a bundle was made: how far each artifact was from the reference, and what it was allowed.

Nothing is executed; `palmtop verify` measures again, and `palmtop bench` measures speed.
"""

from __future__ import annotations

import argparse

from ...runtime.bundle import Bundle
from .console import Console, print_json
from .export import artifact_sizes, show_report

HELP = "show what was measured when a bundle was made"
EPILOG = "exit code 1: an artifact had failed, and the bundle was kept all the same (--keep-best)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")


def run(arguments: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(arguments.bundle)
    manifest, report = bundle.manifest, bundle.report()
    sizes = artifact_sizes(manifest.files, manifest.artifacts)
    quantization = {entry.path: entry.quantization for entry in manifest.artifacts}
    code = int(bool(report.failed))
    if arguments.json:
        print_json(
            {
                "bundle": arguments.bundle,
                "task": manifest.task,
                "identity": manifest.identity,
                "sizes": sizes,
                "quantization": quantization,
                "parity": report.to_json(),
            }
        )
        return code
    console.say(f"{manifest.source.id}: {manifest.task}, {manifest.source.architecture}")
    show_report(console, report, sizes)
    for path, entry in quantization.items():
        if entry:
            console.say(f"{path}: " + ", ".join(f"{name} {_plain(value)}" for name, value in sorted(entry.items())))
    for artifact in report.artifacts:
        for problem in artifact.problems:
            console.warn(f"{artifact.path}: {problem}")
        if artifact.skipped:
            console.say(f"{artifact.path} does not take these cases: {', '.join(artifact.skipped)}")
    return code


def _plain(value: object) -> str:
    """A value of a manifest as a person writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items()) + "}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
