"""What quantization is calibrated with: texts of the user's, or palmtop's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.textfile import Text, read_texts
from .reference import TextInputs
from .texts import CHOICES

_TEXTS = Path(__file__).with_name("calibration.txt")
# Of a file with more texts than twice this, as many from all over it are taken.
_ENOUGH = 2000


def text_feeds(inputs: TextInputs, path: Path | None = None) -> list[dict[str, Any]]:
    """A file's texts, or palmtop's own, as the model takes them, one a batch, without padding.

    Raises:
        RequestError: the file is not what it should be.
    """
    task = inputs.source.task
    if path is None and task.rank == 3:
        return [inputs.feeds([prompt] * len(choices), list(choices)) for prompt, choices in CHOICES]
    texts = read_texts(path) if path is not None else _own(task.name)
    feeds = []
    for entry in texts[:: max(len(texts) // _ENOUGH, 1)]:
        if isinstance(entry, str) and (task.rank == 3 or task.name == "question-answering"):
            raise RequestError(
                f"{path}: {task.name} needs JSON lines with a text and a text_pair; this is one text: {entry[:60]!r}."
            )
        first, second = (entry, None) if isinstance(entry, str) else entry
        try:
            feeds.append(inputs.feeds([first], None if second is None else [second]))
        except Exception as error:  # tokenizers raises nothing more precise for a question longer than the model takes
            if path is not None:
                raise RequestError(f"{path}: the model cannot take {first[:60]!r}: {error}.") from error
    return feeds


def _own(task: str) -> list[Text]:
    lines = _TEXTS.read_text(encoding="utf-8").splitlines()
    if task == "question-answering":  # any two neighbours: what a question and a passage look like to the layers
        return list(zip(lines[0::2], lines[1::2], strict=False))
    return list(lines)
