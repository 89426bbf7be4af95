"""Tiny Python tokenizers over SentencePiece models, and text that takes their rules apart."""

from __future__ import annotations

import functools
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .moses import _PARTS, ENGLISH, FRENCH, SPECIALS, moses_vocabulary
from .vocab import CORPUS

# What normalisation treats specially: sequences that are composed, marks in any order, spaces, widths, languages.
_FORMS = (
    *("e\u0301", "e\u0302\u0301", "a\u0323\u0302", "g\u0323\u0302", "q\u0307\u0323", "ê\u0323", "½\u0301", "\u212b"),
    *(
        "\u1100\u1161\u11a8",
        "\uac00\u11a8",
        "ㄱㅏ",
        "ﾡ",
        "か\u3099",
        "ｶﾞ",
        "\u0915\u093c",
        "\u0958",
        "ש\u05c1",
        "\u0301",
    ),
    *(
        "▁",
        " ▁",
        "▁ ",
        "  ",
        " \u3000",
        "\x01",
        "\x1f",
        "\u200b",
        "\u200c",
        "\ufeff",
        "\x85",
        "\r\n",
        "¨",
        "ａｂＣ",
        "①",
    ),
    *(
        ">>fr<<",
        ">>xx<<",
        ">> fr<<",
        "__fr__",
        "__en__",
        "ß",
        "ßü",
        "ü",
        "日",
        "ꙮ",
        "ꙮꙭ",
        "ꙭꙮ",
        "ꙮ▁ꙮ",
        "\ue000",
        "\ue002",
    ),
    *("é", "ñ", "Ω", "ﬀ", "™", "㎏", "ⅷ", "가", "각", "한국어", "नमस्ते", "สวัสดี", "مرحبا", "שָׁלוֹם", "Việt", "👍🏽", "🇫🇷"),
)


def texts(count: int, seed: int = 0, special: bool = True) -> list[str]:
    """Sentences, and pieces of them and of every kind in any order; without `special` no names of special tokens."""
    rng = random.Random(seed)
    sentences = [*FRENCH, *ENGLISH, *CORPUS]
    words = [word for sentence in sentences for word in sentence.split()]
    parts = [part for part in (*_PARTS, *_FORMS) if special or not (part.startswith("<") and part.endswith(">"))]
    found = list(sentences)
    while len(found) < count:
        style = rng.random()
        if style < 0.2:
            text = " ".join(rng.choices(sentences, k=2))
            start = rng.randrange(len(text))
            text = text[start : start + rng.randint(1, 60)]
        elif style < 0.6:
            joints = (" ", " ", " ", "", rng.choice(parts), rng.choice(_FORMS))
            text = "".join(rng.choice(words) + rng.choice(joints) for _ in range(rng.randint(1, 8)))
        else:
            text = "".join(rng.choice((*parts, *_FORMS, " ")) for _ in range(rng.randint(1, 12)))
        if rng.random() < 0.1:
            text = rng.choice((f">>fr<< {text}", f">>fr<<{text}", f"  {text}\n", text.upper(), f">>xx<<{text}"))
        found.append(text)
    return found


@functools.cache
def trained(kind: str = "unigram", rule: str = "nmt_nfkc", language: str = "both", size: int = 400) -> bytes:
    """A model that SentencePiece trained on sentences of one language, or both."""
    import sentencepiece

    sentences = {"both": (*FRENCH, *ENGLISH, *CORPUS), "en": (*ENGLISH, *CORPUS), "fr": FRENCH}[language]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 3),
        model_writer=out,
        model_type=kind,
        vocab_size=size,
        normalization_rule_name=rule,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def _names(model: bytes) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def _files(folder: Path, **files: Any) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for name, content in files.items():
        place = folder / name
        place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        places[name] = str(place)
    return places


def m2m_100(folder: Path, kind: str = "unigram") -> Any:
    """Ids in fairseq's order, languages behind them."""
    from transformers import M2M100Tokenizer

    model = trained(kind)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    ordered = [*special, *(name for name in _names(model)[::-1] if name not in special)]
    files = _files(folder, vocab={name: i for i, name in enumerate(ordered)}, spm=model)
    return M2M100Tokenizer(files["vocab"], files["spm"], src_lang="en", tgt_lang="fr", model_max_length=64)


def marian(folder: Path, codes: bool = True) -> Any:
    """One vocabulary of the pieces of two languages, each with a model of its own."""
    from transformers import MarianTokenizer

    source, target = trained(language="en", size=250), trained(language="fr", size=200)
    names = [*_names(target)[::-1], *_names(source), "ꙮ", "ꙮꙭ", "ß"]
    languages = [">>fr<<", ">>de<<"] if codes else []
    special = ["</s>", "<unk>"]
    ordered = [*special, *languages, *dict.fromkeys(n for n in names if n not in (*special, "<s>")), "<pad>"]
    files = _files(folder, vocab={name: i for i, name in enumerate(ordered)}, source=source, target=target)
    return MarianTokenizer(files["source"], files["target"], files["vocab"], model_max_length=64)


def speech_to_text(folder: Path, upper: bool = False) -> Any:
    from transformers import Speech2TextTokenizer

    model = trained()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    ordered = [*special, *(name for name in _names(model) if name not in special)]
    files = _files(folder, vocab={name: i for i, name in enumerate(ordered)}, spm=model)
    return Speech2TextTokenizer(files["vocab"], files["spm"], do_upper_case=upper, model_max_length=64)


def siglip(folder: Path, rule: str = "nmt_nfkc") -> Any:
    from transformers import SiglipTokenizer

    return SiglipTokenizer(_files(folder, model=trained(rule=rule))["model"])


def perceiver(folder: Path) -> Any:
    from transformers import PerceiverTokenizer

    return PerceiverTokenizer(model_max_length=64)


def byt5(folder: Path) -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(model_max_length=64)


def _at_words(folder: Path, special: tuple[str, ...], lower: bool = False) -> tuple[str, str, list[str]]:
    """Vocabulary and merges with pieces inside words as subword-nmt writes them, and those pieces in order."""
    vocabulary, merges = moses_vocabulary(folder, lower=lower)
    known = json.loads(vocabulary.read_text(encoding="utf-8"))
    pieces = [piece for piece in known if piece not in SPECIALS and piece[0] != "\ue000"]
    tokens = [piece[:-4] if piece.endswith("</w>") else f"{piece}@@" for piece in pieces]
    ids = {token: i for i, token in enumerate(dict.fromkeys((*special, *tokens)))}
    vocabulary.write_text(json.dumps(ids), encoding="utf-8")
    merges.write_text("#version: 0.2\n" + merges.read_text(encoding="utf-8"), encoding="utf-8")
    return str(vocabulary), str(merges), tokens


def blenderbot_small(folder: Path) -> Any:
    from transformers import BlenderbotSmallTokenizer

    vocabulary, merges, _ = _at_words(folder, ("__null__", "__start__", "__end__", "__unk__"), lower=True)
    return BlenderbotSmallTokenizer(vocabulary, merges, model_max_length=64)


def ctrl(folder: Path) -> Any:
    from transformers import CTRLTokenizer

    vocabulary, merges, _ = _at_words(folder, ("<unk>", "<pad>"))
    return CTRLTokenizer(vocabulary, merges, pad_token="<pad>", model_max_length=64)


def phobert(folder: Path) -> Any:
    from transformers import PhobertTokenizer

    _, merges, tokens = _at_words(folder, ())
    words, pairs = folder / "vocab.txt", folder / "bpe.codes"
    words.write_text("".join(f"{token} 1\n" for token in tokens), encoding="utf-8")
    lines = Path(merges).read_text(encoding="utf-8").splitlines()[1:]
    pairs.write_text("".join(f"{line} 1\n" for line in lines), encoding="utf-8")
    return PhobertTokenizer(str(words), str(pairs), model_max_length=64)


VARIANTS: dict[str, Callable[[Path], Any]] = {
    "m2m_100": m2m_100,
    "m2m_100 of pairs": lambda folder: m2m_100(folder, "bpe"),
    "marian": marian,
    "marian of one language": lambda folder: marian(folder, codes=False),
    "speech_to_text": speech_to_text,
    "speech_to_text in capitals": lambda folder: speech_to_text(folder, upper=True),
    "siglip": siglip,
    "blenderbot-small": blenderbot_small,
    "ctrl": ctrl,
    "phobert": phobert,
    "perceiver": perceiver,
    "byt5": byt5,
}
# Other normalisations, which take a while to be read.
MORE: dict[str, Callable[[Path], Any]] = {
    "siglip, case folded": lambda folder: siglip(folder, "nmt_nfkc_cf"),
    "siglip as it comes": lambda folder: siglip(folder, "identity"),
}
