"""Values of options that several verbs take."""

from __future__ import annotations

import argparse


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads N`."""
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: the engine's choice)")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got '{text}'")
    return value
