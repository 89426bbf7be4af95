"""What pipelines share; and for those of text, running windows of it through a session in good batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..errors import DamagedError, RequestError
from ..manifest import Dim, Manifest
from ..session import Session
from ..tokenizer import Tokenizer, Window

T = TypeVar("T")
Outputs = dict[str, np.ndarray]


class Pipeline:
    """Inputs in, results out, for one task. Made by `palmtop.runtime.load`.

    `outputs` are the outputs it needs of an artifact. `batch_size` is how many inputs run together unless a call says
    otherwise. `needs_tokenizer`: it cannot do without the bundle's tokenizer.
    """

    task: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    needs_tokenizer: ClassVar[bool] = False
    batch_size: int = 8

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer | None, session: Session):
        artifact = session.artifact
        if tokenizer is None and self.needs_tokenizer:
            raise DamagedError(f"The task '{self.task}' needs a tokenizer, and this bundle has none. Export it again.")
        absent = [name for name in self.outputs if artifact.output(name) is None]
        if absent:
            raise DamagedError(f"{artifact.path} has no output {', '.join(absent)}, which {self.task} needs.")
        self.manifest = manifest
        self.session = session

    @functools.cached_property
    def id2label(self) -> dict[int, str]:
        """The classes by number. Raises DamagedError when the bundle names none."""
        labels = self.manifest.postprocess.get("id2label")
        if not labels:
            raise DamagedError("The manifest names no labels (postprocess.id2label). Export the bundle again.")
        return {int(index): label for index, label in labels.items()}

    def __repr__(self) -> str:
        artifact = self.session.artifact
        return f"<{self.task} pipeline: {artifact.path} on {self.session.engine}>"


class TextPipeline(Pipeline):
    """A pipeline that reads text through a tokenizer.

    The outputs of `per_token` have an axis that follows the tokens.
    """

    needs_tokenizer = True
    per_token: ClassVar[tuple[str, ...]] = ()

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        artifact = session.artifact
        names = [spec.name for spec in artifact.inputs]
        if "input_ids" not in names:
            raise DamagedError(
                f"{artifact.path} takes no input_ids, which {self.task} feeds it. Export the bundle again."
            )
        extra = [name for name in names if name not in tokenizer.spec.inputs]
        if extra:
            raise DamagedError(
                f"{artifact.path} takes {', '.join(extra)}, which the bundle's tokenizer does not make. "
                "Export the bundle again."
            )
        super().__init__(manifest, tokenizer, session)
        self.tokenizer = tokenizer
        axes = next(spec for spec in artifact.inputs if spec.name == "input_ids").dims
        self._batch_axis, self._length_axis = axes[0], axes[-1]
        self._fills_batches = self._batch_axis.fit(1) != 1
        self._half = [spec.name for spec in artifact.outputs if spec.dtype == "float16" and spec.name in self.outputs]
        self._has_mask = "attention_mask" in names
        #: The longest window in tokens, special ones included, that both tokenizer and artifact take.
        self.max_length = min(tokenizer.spec.max_length, self._length_axis.largest or tokenizer.spec.max_length)

    def run_windows(
        self, windows: Sequence[Window], read: Callable[[Outputs, Window], T], batch_size: int | None = None
    ) -> list[T]:
        """Run windows through the model and read a result from the outputs of each, in the order of the windows.

        Windows of similar length run together, so that little is padded. `read` gets the outputs of one window, the
        leading axis removed, padding cut off and half precision widened.
        """
        size = self.batch_size if batch_size is None else whole("batch_size", batch_size) or self.batch_size
        results: list[Any] = [None] * len(windows)
        mixed = self._has_mask  # without a mask a model sees padding
        groups = [[0]] if len(windows) == 1 else grouped(list(map(len, windows)), size, self._batch_axis, mixed)
        for group in groups:
            inputs = self.tokenizer.batch(list(map(windows.__getitem__, group)), self._length_axis)
            if len(group) > 1 or self._fills_batches:
                outputs = run_rows(self.session, inputs, self._batch_axis)
            else:
                outputs = self.session.run(inputs)
            for name in self._half:
                outputs[name] = widened(outputs[name])
            for row, index in enumerate(group):
                mine = {}
                for name in self.outputs:
                    mine[name] = outputs[name][row]
                if self.per_token:
                    kept = self._unpadded(len(windows[index]), inputs["input_ids"].shape[1])
                    for name in self.per_token:
                        mine[name] = mine[name][kept]
                results[index] = read(mine, windows[index])
        return results

    def _unpadded(self, used: int, padded: int) -> slice:
        """Where the tokens of a window are in a padded row."""
        return slice(padded - used, padded) if self.tokenizer.spec.padding_side == "left" else slice(0, used)


def grouped(lengths: list[int], size: int, axis: Dim, mixed: bool) -> Iterator[list[int]]:
    """Positions of inputs to run together: neighbours in length, at most `size`, and no more than the batch axis takes.

    Args:
        mixed: whether inputs of different lengths may run together.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    if axis.largest is not None:
        size = min(size, axis.largest)
    group: list[int] = []
    for index in order:
        unequal = group and not mixed and lengths[group[0]] != lengths[index]
        if len(group) == size or unequal:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def run_rows(session: Session, inputs: dict[str, np.ndarray], axis: Dim) -> Outputs:
    """Run a batch. Where the axis admits no such size, copies of the last row fill it, their outputs are dropped."""
    rows = len(next(iter(inputs.values())))
    fitting = axis.fit(rows)
    if fitting is not None and fitting > rows:
        filled = {name: np.concatenate([a, a[-1:].repeat(fitting - rows, axis=0)]) for name, a in inputs.items()}
        return {name: array[:rows] for name, array in session.run(filled).items()}
    return session.run(inputs)


def widened(array: np.ndarray) -> np.ndarray:
    """Half precision as float32, so that scores are computed in it."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def listed(inputs: Any, kinds: tuple[type, ...], what: str) -> tuple[list[Any], bool]:
    """The inputs of a call as a list, and whether the call gave just one.

    Raises:
        RequestError: something that is neither of `kinds` nor a collection of them; `what` says what was expected.
    """
    if isinstance(inputs, kinds):
        return [inputs], True
    if isinstance(inputs, (bytes, bytearray, str, dict)) or not isinstance(inputs, Iterable):
        raise RequestError(f"Expected {what}, or a list of them, got {type(inputs).__name__}: {repr(inputs)[:60]}.")
    items = list(inputs)
    for index, item in enumerate(items):
        if not isinstance(item, kinds):
            raise RequestError(f"Input {index}: expected {what}, got {type(item).__name__}: {repr(item)[:60]}.")
    return items, False


def whole(name: str, value: int | None, least: int = 1) -> int | None:
    """A whole number of at least `least`, or None. Raises RequestError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise RequestError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return int(value)


def choice(name: str, value: str, known: Iterable[str]) -> str:
    """One of the known values. Raises RequestError with all of them."""
    known = list(known)
    if value not in known:
        raise RequestError(f"Unknown {name} {value!r}. Known: {', '.join(known)}.")
    return value
