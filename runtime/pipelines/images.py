"""What pipelines of images share: preparing pictures, and running those of one size together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..errors import DamagedError, RequestError
from ..manifest import Manifest, TensorSpec
from ..session import Session
from ..tokenizer import Tokenizer
from ..vision import ImageProcessor, Picture
from .base import Outputs, Pipeline, run_rows, whole, widened

T = TypeVar("T")

PICTURE = "a picture (a file, an array or a Pillow image)"


class ImagePipeline(Pipeline):
    """A pipeline that looks at pictures. `extra` are inputs that it makes besides those of the image processor."""

    extra: ClassVar[tuple[str, ...]] = ()

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer | None, session: Session):
        super().__init__(manifest, tokenizer, session)
        data = manifest.preprocess.get("image")
        if data is None:
            raise RequestError(
                "This bundle does not say how pictures are prepared, as its checkpoint had no image processor. Run it "
                "on finished arrays: Bundle.open(path).open_session().run(feeds)."
            )
        self.processor = ImageProcessor(data)
        path = session.artifact.path
        self._specs = [spec for spec in session.artifact.inputs if spec.name in self.processor.inputs]
        unknown = [
            spec.name for spec in session.artifact.inputs if spec not in self._specs and spec.name not in self.extra
        ]
        if unknown or not self._specs:
            raise DamagedError(
                f"{path} takes {', '.join(unknown) or 'no pictures'}, which the bundle does not prepare."
            )

    def input(self, name: str) -> TensorSpec | None:
        """An input of the artifact."""
        return next((spec for spec in self.session.artifact.inputs if spec.name == name), None)

    def run_pictures(
        self,
        sources: Sequence[Any],
        read: Callable[[Outputs, Picture], T],
        batch_size: int | None = None,
        more: Callable[[int], dict[str, np.ndarray]] | None = None,
    ) -> list[T]:
        """Run pictures through the model and read a result from the outputs of each, in their order.

        Pictures that the steps give one size run together: padding, even masked, would change what a model sees.
        `read` gets the outputs of one picture, the leading axis removed and half precision widened. `more` gives
        further inputs for so many rows.
        """
        size = whole("batch_size", batch_size) or self.batch_size
        axis = self._specs[0].dims[0]
        if axis.largest is not None:
            size = min(size, axis.largest)
        names = [spec.name for spec in self.session.artifact.outputs]
        results: dict[int, T] = {}
        prepared = [self.processor.prepare(source) for source in sources]
        for group in _same_sizes(prepared, size):
            made = self.processor.batch([prepared[index] for index in group])
            feeds = {spec.name: made[spec.name] for spec in self._specs}
            outputs = run_rows(self.session, {**feeds, **(more(len(group)) if more is not None else {})}, axis)
            for row, index in enumerate(group):
                results[index] = read({name: widened(outputs[name][row]) for name in names}, prepared[index])
        return [results[index] for index in range(len(prepared))]


def pictures(inputs: Any) -> tuple[list[Any], bool]:
    """The pictures of a call as a list, and whether the call gave just one. Raises RequestError."""
    if is_picture(inputs):
        return [inputs], True
    if isinstance(inputs, dict) or not isinstance(inputs, Iterable):
        raise RequestError(f"Expected {PICTURE}, or a list of them, got {type(inputs).__name__}: {repr(inputs)[:60]}.")
    items = list(inputs)
    for index, item in enumerate(items):
        if not is_picture(item):
            raise RequestError(f"Input {index}: expected {PICTURE}, got {type(item).__name__}: {repr(item)[:60]}.")
    return items, False


def is_picture(value: Any) -> bool:
    return isinstance(value, (str, Path, bytes, np.ndarray)) or hasattr(value, "getbands")


def _same_sizes(prepared: Sequence[Picture], size: int) -> list[list[int]]:
    """Positions of pictures that run together: of one size, at most `size`."""
    by_size: dict[tuple[Any, ...], list[int]] = {}
    for index, picture in enumerate(prepared):
        by_size.setdefault((picture.values.shape, picture.valid), []).append(index)
    return [group[start : start + size] for group in by_size.values() for start in range(0, len(group), size)]
