"""Tokenizers that run SentencePiece in Python and give its pieces ids of their own.

Pieces that the ids leave out, tokens that no text is cut into (those of another language), languages named in front of
a text: what SentencePiece's own formats cannot say is said with `MARK`, which begins the tokens that text is never cut
into, and with steps of the normaliser that put it there where one of them is meant.

What still differs: a piece without an id is cut further, where Python gives the unknown token; and of two ways to cut
a text whose costs are equal but for rounding, SentencePiece, which adds in single precision, may take the other one.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from ...runtime.errors import UnsupportedError
from .charsmap import charsmap_steps
from .steps import (
    ANY,
    BETWEEN,
    END,
    MARK,
    OTHER,
    START,
    Step,
    a_class,
    add_tokens,
    any_of,
    lower,
    python_class,
    replace,
    template,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("palmtop")

Pairs = list[tuple[str, str]]
SPACE = "▁"
# Types of pieces and of models, as sentencepiece_model.proto numbers them.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
# A language that the vocabulary does not have, and what SentencePiece does not print.
_STRANGE, _SILENT = "\ue002", "\ue003"
# Below what any way through a text costs: such a token is taken only where nothing else can be.
_NEVER = 10_000.0


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model and the ids that a tokenizer gives its pieces.

    `ids` has every token with an id but those added behind; `plain` are the ones that are found in text as they are.
    """

    proto: Any
    ids: dict[str, int]
    unknown: str
    plain: frozenset[str]
    kinds: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", {piece.piece: piece.type for piece in self.proto.pieces})
        settings = self.proto.normalizer_spec
        if self.proto.trainer_spec.treat_whitespace_as_suffix or not settings.escape_whitespaces:
            raise UnsupportedError(
                "The tokenizer's SentencePiece model puts spaces behind words or leaves them as they are. "
                "Remedy: convert it to a fast tokenizer and save that in the checkpoint."
            )

    @property
    def used(self) -> dict[str, float]:
        """The pieces that text is cut into, with their scores."""
        normal = [piece.score for piece in self.proto.pieces if piece.type == NORMAL]
        highest = max(normal, default=0.0)
        return {
            piece.piece: piece.score if piece.type == NORMAL else len(piece.piece.encode()) * highest - 0.1
            for piece in self.proto.pieces
            if piece.type in (NORMAL, USER) and piece.piece in self.ids
        }

    @property
    def lost(self) -> list[str]:
        """The pieces that have no id."""
        return [piece.piece for piece in self.proto.pieces if piece.type == NORMAL and piece.piece not in self.ids]

    def name(self, token: str) -> str:
        """What a token is called in the pipeline."""
        if token in self.plain or self.kinds.get(token) in (NORMAL, USER, BYTE):
            return token
        return f"{_SILENT}{token}" if self.kinds.get(token) == CONTROL else f"{MARK}{token}"


def model_proto(processor: Any) -> Any:
    """The content of a SentencePiece model that is loaded."""
    from sentencepiece import sentencepiece_model_pb2 as messages

    return messages.ModelProto.FromString(processor.serialized_model_proto())  # type: ignore[attr-defined]


# --- the model ------------------------------------------------------------------------------------------------------


def piece_model(pieces: Pieces) -> models.Model:
    """The model that cuts normalised text as SentencePiece does, with a tokenizer's ids."""
    lost = pieces.lost
    if lost:
        log.info("%d pieces of the tokenizer have no id (%s, ...).", len(lost), ", ".join(lost[:3]))
    if pieces.proto.trainer_spec.model_type == BPE:
        return _pairs(pieces, lost)
    if pieces.proto.trainer_spec.model_type != UNIGRAM:
        raise UnsupportedError(
            "The tokenizer's SentencePiece model is neither Unigram nor BPE. Remedy: train it as one of these."
        )
    used = pieces.used
    least = min(used.values(), default=0.0) - _NEVER
    vocabulary: list[tuple[str, float]] = [
        (f"{MARK}{token_id}", least) for token_id in range(max(pieces.ids.values()) + 1)
    ]
    for token, token_id in pieces.ids.items():
        vocabulary[token_id] = (pieces.name(token), used.get(token, least))
    return models.Unigram(vocabulary, pieces.ids[pieces.unknown], _bytes(pieces))


def _bytes(pieces: Pieces) -> bool:
    return sum(kind == BYTE for kind in pieces.kinds.values()) == 256


def _pairs(pieces: Pieces, lost: Sequence[str]) -> models.BPE:
    if lost:
        raise UnsupportedError(
            f"{len(lost)} pieces of the tokenizer's SentencePiece model have no id ({', '.join(lost[:3])}, ...). "
            "In Python such a piece becomes the unknown token after merging; other readers cannot do that. "
            "Remedy: add the pieces to vocab.json (and rows to the model's embeddings)."
        )
    scores = pieces.used
    vocabulary = {pieces.name(token): token_id for token, token_id in pieces.ids.items()}
    ordered = sorted((token for token in scores if len(token) > 1), key=lambda token: -scores[token])
    merges = [
        (token[:at], token[at:])
        for token in ordered
        for at in range(1, len(token))
        if token[:at] in scores and token[at:] in scores
    ]
    return models.BPE(
        vocabulary, merges, unk_token=pieces.name(pieces.unknown), fuse_unk=True, byte_fallback=_bytes(pieces)
    )


# --- normalisation --------------------------------------------------------------------------------------------------


def piece_normalizer(
    pieces: Pieces, *, before: Iterable[Step] = (), codes: Iterable[str] | None = None, inside: bool = False
) -> normalizers.Sequence:
    """What SentencePiece does with text before it cuts it.

    Args:
        before: what Python does before.
        codes: names of languages that are tokens at the start of a text (`>>fr<<`).
        inside: something stands before the text already, so that nothing happens at its start.
    """
    signs = (MARK, _STRANGE, _SILENT, BETWEEN)
    held = {OTHER, *signs} & set("".join(pieces.ids))
    if held:
        raise UnsupportedError(
            f"The tokenizer's vocabulary has the private-use character U+{ord(min(held)):04X}, which stands for "
            "something else here. Remedy: convert it to a fast tokenizer and save that in the checkpoint."
        )
    settings = pieces.proto.normalizer_spec
    steps = [*replace("string", [(sign, OTHER) for sign in signs]), *before]
    start, code = START, ""
    if codes is not None:
        codes = sorted(codes)
        code = f"(?:{MARK}{any_of(codes)}|{_STRANGE})" if codes else _STRANGE
        if codes:
            # `tokenizers` aborts in later steps when something was put in before the first character.
            steps += replace("regex", [(f"{START}>(?={any_of(code[1:] for code in codes)})", f"{MARK}>")])
        steps += replace("regex", [(f"{START}>>{ANY}*?<<", _STRANGE)])
        start = f"{START}(?:{code}|(?!{code}))"
    steps += charsmap_steps(settings.precompiled_charsmap)
    if settings.remove_extra_whitespaces:
        steps += replace("regex", [(" {2,}", " "), (f"[ {SPACE}]+{END}", "")])
        steps += [] if inside else replace("regex", [(rf"{start}\K +", "")])
    if settings.add_dummy_prefix and not inside:
        steps.append(normalizers.Prepend(SPACE))
        if code:  # the space stands behind it
            steps += replace("regex", [(f"{START}{SPACE}(?={code})", ""), (rf"{START}{code}\K(?={ANY})", SPACE)])
    steps += replace("string", [(" ", SPACE)])
    return normalizers.Sequence([*steps, *_unknown_words(pieces)])


def _unknown_words(pieces: Pieces) -> list[Step]:
    """Between known characters, Python looks characters that are no pieces up as one token, and may find one."""
    known = {piece for piece in pieces.used if len(piece) == 1}
    found = [token for token in pieces.ids if pieces.name(token) == f"{MARK}{token}" and not known & set(token)]
    steps: list[Step] = []
    if found and known:
        other = f"[^{a_class(known)}]"
        steps += replace("regex", [(f"(?<!{other})(?={any_of(sorted(found))}(?!{other}))", MARK)])
    # What looks like a special token now did not in the text as it was given. Unknown neighbours are one token.
    for token in sorted(pieces.plain & set(pieces.ids)):
        place = next((at for at, character in enumerate(token, start=1) if character not in known), None)
        if place is not None and token not in pieces.used:
            steps += replace("string", [(token, f"{token[:place]}{MARK}{token[place:]}")])
    return steps


# --- back to text ---------------------------------------------------------------------------------------------------


def piece_decoder(
    pieces: Pieces, special: Iterable[str], around: Callable[[str], Pairs], upper: bool = False
) -> decoders.Sequence:
    """Pieces as text.

    Args:
        special: names of special tokens.
        around: what is done about spaces around those, from a pattern that matches them.
        upper: capitals are written.
    """
    space = python_class(r"\s")
    silent = [decoders.Replace(Regex(f"{_SILENT}{ANY}*"), ""), decoders.Replace(MARK, "")]
    capitals = [decoders.Replace(small, small.upper()) for small in _small(pieces)] if upper else []
    restored = [decoders.Replace(token.upper(), token) for token in sorted(special)] if upper else []
    pairs = [*around(any_of(special)), (SPACE, " "), (f"{START}[{space}]+", ""), (f"[{space}]+{END}", "")]
    fallback = [decoders.ByteFallback()] if _bytes(pieces) else []
    steps = [*silent, *capitals, *restored, *fallback, decoders.Fuse()]
    return decoders.Sequence([*steps, *(decoders.Replace(Regex(old), new) for old, new in pairs)])


def _behind(text: str) -> Callable[[str], Pairs]:
    """Behind each special token stands a text, and no space of the piece after it."""
    return lambda special: [(rf"{special}\K{SPACE}*", text)]


def _between(special: str) -> Pairs:
    """A space behind special tokens where something stands between them and the next."""
    return [
        (rf"{special}\K(?:{SPACE}+|(?!{special}|{END}))(?={ANY}*?{special})", " "),
        (rf"{special}\K{SPACE}+", ""),
    ]


def _small(pieces: Pieces) -> list[str]:
    return sorted({character for token in pieces.ids for character in token if character.upper() != character})


# --- tokenizers -----------------------------------------------------------------------------------------------------


def _backend(slow: PreTrainedTokenizerBase, pieces: Pieces, normalizer: Any, decoder: Any) -> Tokenizer:
    backend = Tokenizer(piece_model(pieces))
    backend.normalizer = normalizer
    backend.decoder = decoder
    add_tokens(backend, slow)
    backend.post_processor = template(slow)
    return backend


def own_pieces(slow: PreTrainedTokenizerBase) -> Pieces:
    """The model that a tokenizer cuts text with, and its ids."""
    processor = getattr(slow, "spm_source", None) or slow.sp_model
    proto = model_proto(processor)
    own = getattr(slow, "encoder", None) or {piece.piece: index for index, piece in enumerate(proto.pieces)}
    plain = frozenset(token.content for token in slow.added_tokens_decoder.values())
    return Pieces(proto, {**own, **getattr(slow, "lang_token_to_id", {})}, str(slow.unk_token), plain)


def vocabulary_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """Pieces with the ids of `vocab.json` (M2M100, Speech2Text)."""
    pieces = own_pieces(slow)
    behind = _behind("" if type(slow).__name__ == "M2M100Tokenizer" else " ")
    upper = bool(getattr(slow, "do_upper_case", False))
    decoder = piece_decoder(pieces, slow.all_special_tokens, behind, upper)
    return _backend(slow, pieces, piece_normalizer(pieces), decoder)


def marian_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """The source's pieces with the ids of `vocab.json`, and languages in front. It decodes what the target says.

    Raises:
        UnsupportedError: source and target have vocabularies of their own.
    """
    if slow.separate_vocabs:
        raise UnsupportedError(
            "The tokenizer has two vocabularies, one of the source and one of the target, and a tokenizer.json has "
            "one. Remedy: use a checkpoint with a shared vocabulary."
        )
    pieces = own_pieces(slow)
    normalizer = piece_normalizer(pieces, codes=slow.supported_language_codes)
    return _backend(slow, pieces, normalizer, piece_decoder(pieces, slow.all_special_tokens, _behind(" ")))


def siglip_backend(slow: PreTrainedTokenizerBase) -> Tokenizer:
    """SigLIP's: lower case, no punctuation, and a space more in front.

    It differs where a text has special tokens inside.
    """
    pieces = own_pieces(slow)
    steps = [
        *replace("string", [(SPACE, " ")]),
        *(lower() if slow.do_lower_case else []),
        *replace("regex", [(f"[{a_class(string.punctuation)}]", ""), (f"[{python_class(chr(92) + 's')}]+", " ")]),
        normalizers.Prepend(SPACE),
    ]
    normalizer = piece_normalizer(pieces, before=steps, inside=True)
    return _backend(slow, pieces, normalizer, piece_decoder(pieces, slow.all_special_tokens, _between))
