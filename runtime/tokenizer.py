"""Text to ids and back, from the tokenizer folder of a bundle.

The work is done by the `tokenizers` library, the same that Transformers uses, so ids and offsets are the same. What is
added here is what that library leaves to its caller: lengths that an artifact admits, padding to them, and errors
instead of aborts for lengths that cannot work.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from .errors import DamagedError, RequestError
from .manifest import Dim, TokenizerSpec

Truncation = Literal["longest_first", "only_first", "only_second"]

# The model inputs that a tokenizer makes, from one encoding.
_INPUTS = {
    "input_ids": "ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "type_ids",
    "special_tokens_mask": "special_tokens_mask",
}


# What the texts of a call are, when no closer look is needed.
_TEXT = {str}


@dataclass(slots=True)  # not frozen: that takes three functions more to make one
class Window:
    """A tokenized text, or the part of one that fits a model. `sample` is the position of the text in the call."""

    sample: int
    encoding: tokenizers.Encoding

    def __len__(self) -> int:
        return len(self.encoding)


_ENCODING = attrgetter("encoding")


@dataclass(frozen=True)
class Encoded:
    """A padded batch of N windows of S tokens.

    `inputs`: the model's inputs by name, each (N, S) int64.
    `offsets`: (N, S, 2) int64, where each token lies in its text, in code points; (0, 0) for special tokens.
    `special_tokens_mask`: (N, S) int64, 1 for special tokens and padding.
    `word_ids`, `sequence_ids`: of each token, None for special tokens and padding.
    `samples`: (N,) which text each window is of.
    """

    inputs: dict[str, np.ndarray]
    offsets: np.ndarray
    special_tokens_mask: np.ndarray
    word_ids: list[list[int | None]]
    sequence_ids: list[list[int | None]]
    samples: np.ndarray


class Tokenizer:
    """A tokenizer of a bundle. Calls may come from several threads. `folder` is where it was read from, if it was.

    A model's run leaves nothing of this code in the caches, so that what a text costs here is how many functions it
    goes through, not how often: `encode` and `batch` call few.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        spec: TokenizerSpec,
        clean_up: bool = False,
        folder: Path | None = None,
    ):
        unknown = [name for name in spec.inputs if name not in _INPUTS]
        if unknown:
            raise DamagedError(
                f"The bundle's tokenizer makes {', '.join(unknown)}, which this palmtop does not know. Upgrade palmtop."
            )
        self.spec = spec
        self.folder = folder
        self._backend = backend
        self._clean_up = clean_up
        self._lock = threading.Lock()  # truncation is a setting of the backend, not an argument of a call
        self._truncation: tuple[int, int, str] | None = None
        backend.no_padding()
        backend.no_truncation()
        # Asked for with each text, so found once.
        self._left = spec.padding_side == "left"
        self._names, self._multiple = spec.inputs, spec.pad_to_multiple_of
        self._pads = [self._pad(name) for name in spec.inputs]
        self._read = _reader([_INPUTS[name] for name in spec.inputs])
        self._specials = tuple(backend.num_special_tokens_to_add(pair) for pair in (False, True))

    @classmethod
    def open(cls, folder: Path, spec: TokenizerSpec) -> Tokenizer:
        """Read `tokenizer.json` of a folder. Raises DamagedError when it is missing or not one."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise DamagedError(f"{path} is missing. Export the bundle again.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise DamagedError(f"{path} is not a tokenizer that palmtop can read: {error}.") from error
        settings: dict[str, Any] = {}
        if (folder / "tokenizer_config.json").is_file():
            try:
                settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DamagedError(f"{folder / 'tokenizer_config.json'} is not valid JSON: {error}.") from error
        return cls(backend, spec, clean_up=bool(settings.get("clean_up_tokenization_spaces")), folder=folder)

    def encode(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: Truncation | None = "longest_first",
        stride: int = 0,
        overflow: bool = False,
        add_special_tokens: bool = True,
        words: bool = False,
    ) -> list[Window]:
        """Tokenize texts, or text pairs.

        Args:
            max_length: longest window in tokens, special ones included; None: the tokenizer's own.
            truncation: where tokens are cut when there are more (special tokens never are); None: nowhere.
            stride: how many tokens successive windows share.
            overflow: return every window of a text, not just the first.
            words: texts are lists of words, split beforehand.

        Raises:
            RequestError: something that is not text, or lengths that leave no room for any.
        """
        sequences: list[Any] = list(texts)
        if words or {*map(type, sequences)} != _TEXT:
            sequences = [_checked(text, words) for text in sequences]
        if pairs is not None:
            sequences = list(zip(sequences, [_checked(text, False) for text in pairs], strict=True))
        if not sequences:
            return []
        try:
            settings = None
            if truncation is not None:
                max_length = max_length or self.spec.max_length
                if stride or max_length <= self._specials[pairs is not None]:
                    self._check_room(sequences, pairs is not None, max_length, truncation, stride, add_special_tokens)
                settings = (max_length, stride, truncation)
            with self._lock:
                if settings != self._truncation:
                    self._set_truncation(settings)
                if len(sequences) == 1:  # the batch call costs a thread pool
                    one, other = sequences[0] if pairs is not None else (sequences[0], None)
                    found = [self._backend.encode(one, other, words, add_special_tokens)]
                else:
                    found = self._backend.encode_batch(sequences, words, add_special_tokens)
        except RequestError:
            raise
        except BaseException as error:
            # The library raises bare Exception, and aborts in its Rust part arrive as a BaseException.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            _refuse_half_characters(sequences)
            raise RequestError(
                f"This text cannot be cut to {max_length} tokens ({truncation}): {error}. "
                "Shorten the part that is kept whole."
            ) from error
        windows = list(map(Window, range(len(found)), found))
        if overflow:
            rest = [[Window(window.sample, part) for part in window.encoding.overflowing] for window in windows]
            windows = [each for first, others in zip(windows, rest, strict=True) for each in (first, *others)]
        return windows

    def batch(self, windows: Sequence[Window], length: Dim | int | None = None) -> dict[str, np.ndarray]:
        """The model inputs of some windows, each (N, S) int64, padded on the tokenizer's side.

        Args:
            length: S, or the axis of an artifact, which decides S; None: the longest window.

        Raises:
            RequestError: a window is longer than the axis admits.
        """
        encodings = list(map(_ENCODING, windows))
        lengths = list(map(len, encodings)) or [0]
        size = self.padded_length(max(lengths), length)
        block = list(zip(*map(self._read, encodings), strict=True))  # by input, then by window
        if min(lengths) < size:
            block = [
                tuple(_pad_row(row, size, pad, self._left) for row in rows)
                for rows, pad in zip(block, self._pads, strict=False)
            ]
        # One array for all inputs. Asked for one more than it holds, as `strict` would, it makes up an error message.
        arrays = np.array(block, np.int64) if block else np.zeros((len(self._pads), 0, size), np.int64)
        return dict(zip(self._names, arrays, strict=False))

    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        length: Dim | int | None = None,
        **options: Any,
    ) -> Encoded:
        """Tokenize and pad. `length` as in `batch`, options as in `encode`."""
        first = [texts] if isinstance(texts, str) else texts
        second = [pairs] if isinstance(pairs, str) else pairs
        windows = self.encode(first, second, **options)
        encodings = [window.encoding for window in windows]
        size = self.padded_length(max(map(len, windows), default=0), length)
        return Encoded(
            inputs=self.batch(windows, size),
            offsets=_padded([e.offsets for e in encodings], size, (0, 0), self._left).reshape(len(windows), size, 2),
            special_tokens_mask=_padded([e.special_tokens_mask for e in encodings], size, 1, self._left),
            word_ids=[_pad_row(e.word_ids, size, None, self._left) for e in encodings],
            sequence_ids=[_pad_row(e.sequence_ids, size, None, self._left) for e in encodings],
            samples=np.array([window.sample for window in windows], np.int64),
        )

    def padded_length(self, longest: int, length: Dim | int | None) -> int:
        """The length that windows of up to `longest` tokens are padded to. Raises RequestError when there is none."""
        wanted = longest
        if self._multiple:
            wanted = -(-longest // self._multiple) * self._multiple
        if length is None:
            return wanted
        axis = length if isinstance(length, Dim) else Dim(size=length)
        fitting = axis.fit(wanted)
        fitting = axis.fit(longest) if fitting is None else fitting
        if fitting is None:
            raise RequestError(f"A text has {longest} tokens; the model takes {axis}. Truncate it, or split it.")
        return fitting

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids."""
        text = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self.cleans_up:
            for spaced, tight in _CLEAN_UP:
                text = text.replace(spaced, tight)
        return text

    def tokens_to_text(self, tokens: Sequence[str]) -> str:
        """The text of some tokens."""
        decoder = self._backend.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    def token(self, token_id: int) -> str:
        """The token of an id, as it stands in the vocabulary; empty for rows that models have beyond it."""
        return self._backend.id_to_token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary; None when it has no such token."""
        return self._backend.token_to_id(token)

    def special_id(self, role: str) -> int | None:
        """The id of the token of a role (`pad`, `mask`, ...); None when there is none."""
        return self.spec.special_ids.get(role)

    def special_count(self, pair: bool = False) -> int:
        """How many special tokens are put around one text, or a pair."""
        return self._specials[pair]

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self._backend.get_vocab_size()

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out when special tokens are skipped."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def cleans_up(self) -> bool:
        """Whether `decode` removes spaces before punctuation, as the tokenizer's settings ask for."""
        return self._clean_up and type(self._backend.model).__name__ != "BPE"

    @property
    def marks_subwords(self) -> bool:
        """Whether tokens that continue a word are marked (`##ing`), so that words can be told apart."""
        return bool(getattr(self._backend.model, "continuing_subword_prefix", None))

    def _pad(self, name: str) -> int:
        return self.spec.input_pad.get(name, 1 if name == "special_tokens_mask" else 0)

    def _set_truncation(self, settings: tuple[int, int, str] | None) -> None:
        """Length, stride and strategy, None to cut nothing; the lock is held."""
        if settings is None:
            self._backend.no_truncation()
        else:
            longest, stride, strategy = settings
            self._backend.enable_truncation(
                max_length=longest, stride=stride, strategy=strategy, direction=self.spec.truncation_side
            )
        self._truncation = settings

    def _check_room(
        self, sequences: list[Any], pair: bool, max_length: int, truncation: str, stride: int, special: bool
    ) -> None:
        """Refuse lengths that the backend aborts on, or for which it silently cuts nothing."""
        added = self.special_count(pair) if special else 0
        if max_length <= added:
            raise RequestError(
                f"A length of {max_length} leaves no room for text beside {added} special tokens. Ask for more."
            )
        if stride == 0:
            return
        room = max_length - added
        if pair and truncation != "longest_first":
            kept = 0 if truncation == "only_second" else 1
            with self._lock:
                self._set_truncation(None)
                # Pairs of a call often share the side that is kept whole: one question, many contexts.
                for text in {sequence[kept] for sequence in sequences}:
                    used = len(self._backend.encode(text, add_special_tokens=False).ids)
                    room = min(room, max_length - added - used)
        if not 0 <= stride < room:
            raise RequestError(
                f"A stride of {stride} tokens does not fit: a window of {max_length} has room for {max(room, 0)} "
                "beside special tokens and the text that is kept whole. Ask for a smaller stride or a larger length."
            )


# What `clean_up_tokenization_spaces` of a tokenizer's settings asks for, in this order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _reader(names: list[str]) -> Callable[[tokenizers.Encoding], tuple[list[int], ...]]:
    """A function that reads these attributes of an encoding, in one call."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda encoding: tuple(getattr(encoding, name) for name in names)


def _checked(text: Any, words: bool) -> Any:
    if words:
        if isinstance(text, str) or not isinstance(text, Sequence):
            raise RequestError(f"Expected a list of words, got {type(text).__name__}.")
        return [_checked(word, False) for word in text]
    if not isinstance(text, str):
        raise RequestError(f"Expected text, got {type(text).__name__}: {repr(text)[:60]}.")
    return text


def _refuse_half_characters(texts: Iterable[Any]) -> None:
    """Raise RequestError for the first text, however deep in lists and pairs, that the library takes for no text."""
    for text in texts:
        if not isinstance(text, str):
            _refuse_half_characters(text)
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"The text has half of a surrogate pair at position {error.start}, which is no character. "
                "Remedy: text.encode('utf-8', 'replace').decode()."
            ) from error


def _pad_row(row: list[Any], size: int, value: Any, left: bool) -> list[Any]:
    padding = [value] * (size - len(row))
    return padding + row if left else row + padding


def _padded(rows: list[list[Any]], size: int, value: Any, left: bool) -> np.ndarray:
    padded = [_pad_row(row, size, value, left) for row in rows]
    return np.array(padded, np.int64) if padded else np.zeros((0, size), np.int64)
