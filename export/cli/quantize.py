"""Find a quantization plan that keeps the agreement asked for on every executed artifact.

With `-o plan.json` the plan is what is written, for `palmtop export --plan`; with any other name, the bundle itself.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ...runtime.bundle import PLAN_NAME
from ...runtime.errors import RequestError
from .console import Console
from .export import add_precision, add_subject, exported, show

HELP = "find a quantization plan that holds an agreement"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the plan to write (*.json), or a bundle to make"
    )
    add_subject(parser)
    add_precision(parser, "auto")
    parser.add_argument("--force", action="store_true", help="replace what exists")


def run(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.plan is not None:
        raise RequestError("palmtop quantize finds a plan; to use one: palmtop export --plan FILE.")
    if arguments.quantize in ("none", "fp16"):
        raise RequestError(
            f"palmtop quantize finds int8, int4 or auto plans; for {arguments.quantize}: palmtop export."
        )
    output = Path(arguments.output)
    if output.suffix != ".json":
        result = exported(arguments, console, output)
        return show(result, str(result.path), arguments, console)
    if output.is_dir() or (output.exists() and not arguments.force):
        raise RequestError(f"{output} exists already. Choose another name, or replace it with --force.")
    if not output.absolute().parent.is_dir():
        raise RequestError(f"No such folder: {output.parent}.")
    with tempfile.TemporaryDirectory() as folder:
        result = exported(arguments, console, Path(folder) / "bundle")
        aside = output.with_name(f".{output.name}.partial")
        aside.write_bytes((result.path / PLAN_NAME).read_bytes())
        aside.replace(output)
    return show(result, str(output), arguments, console)
