"""What happens to text before the tokenizer, as the manifest's `preprocess` says."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from .errors import RequestError


def text_preparer(preprocess: dict[str, Any], prompt: str | None = None) -> Callable[[str], str]:
    """A function that puts the prompt before a text, where the model was trained so.

    Args:
        preprocess: the manifest's field: `prompts` (name -> prefix), `default_prompt` (a name).
        prompt: which prompt; None: the default one, if there is one.

    Raises:
        RequestError: the model has no such prompt.
    """
    prompts = preprocess.get("prompts", {})
    name = prompt if prompt is not None else preprocess.get("default_prompt")
    if name is not None and name not in prompts:
        raise RequestError(f"Unknown prompt '{name}'. This model has: {', '.join(prompts) or 'none'}.")
    prefix = prompts[name] if name is not None else ""
    return functools.partial(operator.add, prefix)
