"""Rebuilt tokenizers against Transformers' Python ones: `python -m tests.fuzz.pieces 20000 [--only marian]`.

Exit code 1 and the first texts that differ, when any does. Ways to cut a text that cost the same but for single
precision's rounding do not count, and are counted.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import transformers
from palmtop.export.tokenization.pieces import own_pieces
from palmtop.export.tokenization.rebuild import known_difference, rebuilt

from ..support.pieces import MORE, VARIANTS, texts


def tied(slow: Any, ours: list[int], theirs: list[int]) -> bool:
    """Whether two ways to cut a text cost the same."""
    if not hasattr(slow, "spm_files") and not hasattr(slow, "sp_model"):
        return False
    scores = own_pieces(slow).used
    costs = [sum(scores.get(token, 0.0) for token in slow.convert_ids_to_tokens(ids)) for ids in (ours, theirs)]
    return math.isclose(*costs, rel_tol=1e-5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    failed = False
    for name, make in {**VARIANTS, **MORE}.items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            slow = make(Path(folder))
        fast = rebuilt(slow)
        special = not hasattr(slow, "_add_eos_if_not_present")
        found = [text for text in texts(arguments.count, arguments.seed, special) if not known_difference(slow, text)]
        different, ties = [], 0
        for text in found:
            ours, theirs = fast.backend_tokenizer.encode(text).ids, slow(text)["input_ids"]
            if ours != theirs:
                ties += tied(slow, ours, theirs)
                different += [] if tied(slow, ours, theirs) else [text]
        print(f"{name}: {len(found)} texts, {len(different)} differ, {ties} ties", flush=True)
        for text in different[:5]:
            print(f"  {text!r}\n    transformers {slow.convert_ids_to_tokens(slow(text)['input_ids'])}")
            print(f"    rebuilt      {fast.backend_tokenizer.encode(text).tokens}")
        failed |= bool(different)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
