"""XLM's and FlauBERT's rebuilt tokenizers against transformers' own: `python -m tests.fuzz.moses 100000`.

Exit code 1 and the first texts that differ, when any does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import transformers
from palmtop.export.tokenization.moses import moses_backend

from ..support.moses import VARIANTS, texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found = texts(arguments.count, arguments.seed)
    failed = False
    for name, make in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            slow = make(Path(folder))
        fast = moses_backend(slow)
        different = [text for text in found if slow(text)["input_ids"] != fast.encode(text).ids]
        print(f"{name}: {len(found)} texts, {len(different)} differ", flush=True)
        for text in different[:5]:
            print(f"  {text!r}\n    transformers {slow.tokenize(text)}\n    rebuilt      {fast.encode(text).tokens}")
        failed |= bool(different)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
