"""Values of options that several verbs take."""

from __future__ import annotations

import argparse


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads N`."""
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: the engine's choice)")


def positive(text: str) -> int:
    """A whole number from 1 on, as an argument's type."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got '{text}'")
    return value
