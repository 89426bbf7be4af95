"""Texts that quantization is calibrated with: the user's, or palmtop's own."""

from __future__ import annotations

from pathlib import Path

from ..runtime.textfile import Text, read_texts

_TEXTS = Path(__file__).with_name("calibration.txt")
# Of a file with more texts than twice this, as many from all over it are taken.
_ENOUGH = 2000


def calibration_texts(path: Path | None, pairs: bool) -> list[Text]:
    """A file's texts, or palmtop's own: with `pairs`, two by two, as a question and a passage look to the layers.

    Raises:
        RequestError: the file is not what it should be.
    """
    if path is not None:
        texts = read_texts(path)
        return texts[:: max(len(texts) // _ENOUGH, 1)]
    lines = _TEXTS.read_text(encoding="utf-8").splitlines()
    return list(zip(lines[0::2], lines[1::2], strict=False)) if pairs else list(lines)
