"""Tiny XLM and FlauBERT tokenizers, and text that takes Moses' rules apart."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

from .vocab import CORPUS

SPECIALS = ("<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10)))
FRENCH = (
    "Bonjour, comment vas-tu?",
    "L'été dernier, j'ai mangé une pomme aujourd'hui.",
    "« Qu'est-ce que c'est ? » dit-il, « rien… »",
    "M. Dupont habite au n° 5 de la rue St. Denis, à 1 000 m. de l'école.",
    "Il a dit : « D'accord », puis il est parti... sans un mot !",
    "Prix : 3,50 € (T.T.C.), soit 10 % de moins qu'hier; voir p. 12.",
    "C'est-à-dire qu'il n'y a plus d'eau, de pain, etc. Mais bon.",
    "Les 1er et 2e art. de la loi n. 12 du 3 janv. 2020.",
)
ENGLISH = (
    "It's the 1990's; don't you think so, Mr. Smith?",
    'He said: "No way." "Really?", she asked.',
    "The U.S. economy grew by 3.5 % in Q1, i.e. more than e.g. Japan's.",
    "See No. 5, pp. 12-14, and Dr. Who's well-known 'blue box'.",
    "Rock 'n' roll, the '60s and ol' times... weren't they great?!",
    "1,000,000 people,5 dogs, 3,cats and ,7 birds.",
)
# Pieces that Moses treats one by one, and what stands between words.
_PARTS = (
    *"abcéàçÉÀΣİßñ019²½,.'\"`-:;!?()[]<>%&|/*_+=~^@#$€«»“”‘’„‚–—…·、。，．！？（）「」《》【】～％０９",
    *(
        "''",
        "``",
        "...",
        "..",
        ". ",
        ", ",
        " '",
        "' ",
        '."',
        ',"',
        '" ',
        "\u00a0",
        "\u00a0:",
        "\u00a0%",
        " %",
        "( ",
        " )",
    ),
    *(
        "nº\u00a0",
        "\u00a0cm",
        "5\u00a06\u00a07",
        "\n",
        "\r\n",
        "\t",
        "\u2028",
        "\u3000",
        "\u200b",
        "\u00ad",
        "\x07",
        "\x1c",
    ),
    *(
        "\ue000",
        "\ufffd",
        "\u0301",
        "\u0323",
        "中文",
        "한국",
        "\u1112\u1161",
        "ก็",
        "कि",
        "👩‍👩‍👧",
        "🙂",
        "ﬁ",
        "ﾃｽﾄ",
        "Ⅳ",
    ),
    *(
        "M.",
        "Mr.",
        "No. 5",
        "Nos.",
        "art. 7",
        "etc.",
        "U.S.",
        "J.-C.",
        "A.",
        "p. ex.",
        "3.5",
        "1,000",
        "l'",
        "d'un",
        "n't",
    ),
    *(
        "'s",
        "s'",
        "aujourd'hui",
        "O'Neill",
        "rock'n'roll",
        "<s>",
        "</s>",
        "<special1>",
        "<unk>",
        "<pad>",
        "DOT",
        "MULTI",
        "DOTMULTI",
    ),
)


def texts(count: int, seed: int = 0) -> list[str]:
    """The hand-written sentences, then generated ones: words of the corpus, and of nothing, in any order."""
    rng = random.Random(seed)
    sentences = [*FRENCH, *ENGLISH, *CORPUS]
    words = [word for sentence in sentences for word in sentence.split()]
    found = list(sentences)
    while len(found) < count:
        style = rng.random()
        if style < 0.25:  # sentences, joined and cut
            text = " ".join(rng.choices(sentences, k=2))
            start = rng.randrange(len(text))
            text = text[start : start + rng.randint(1, 60)]
        elif style < 0.6:  # words of both languages with pieces between
            text = "".join(
                rng.choice(words) + rng.choice((" ", " ", " ", "", rng.choice(_PARTS)))
                for _ in range(rng.randint(1, 8))
            )
        else:
            text = "".join(rng.choice(_PARTS) for _ in range(rng.randint(1, 12)))
        if rng.random() < 0.1:
            text = rng.choice((text.upper(), text.title(), text.replace(" ", "\u00a0"), f" {text}\n"))
        found.append(text)
    return found


def moses_vocabulary(folder: Path, merges: int = 300, lower: bool = False) -> tuple[Path, Path]:
    """Write `vocab.json` and `merges.txt` with pieces learnt from the sentences; ties fall alphabetically."""
    sentences = [*FRENCH, *ENGLISH, *CORPUS]
    counts = Counter(word for s in sentences for word in (s.lower() if lower else s).split())
    words = {(*word[:-1], f"{word[-1]}</w>"): count for word, count in counts.items()}
    # Every character of the texts has its own tokens: what differs cannot hide behind the unknown one.
    letters = sorted({c for text in (*counts, *_PARTS) for c in text + text.lower() if not c.isspace()})
    vocabulary = [*SPECIALS, *letters, *(f"{letter}</w>" for letter in letters)]
    pairs = []
    for _ in range(merges):
        found: Counter = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                found[pair] += count
        if not found:
            break
        best = min(found, key=lambda pair: (-found[pair], pair))
        pairs.append(best)
        vocabulary.append("".join(best))
        words = {_merged(word, best): count for word, count in words.items()}
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merged = folder / "vocab.json", folder / "merges.txt"
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    vocab.write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    merged.write_text("".join(f"{left} {right}\n" for left, right in pairs), encoding="utf-8")
    return vocab, merged


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def flaubert(folder: Path, lower: bool = False):
    """A FlauBERT tokenizer, cased or lower-cased."""
    from transformers import FlaubertTokenizer

    vocab, merges = moses_vocabulary(folder, lower=lower)
    return FlaubertTokenizer(str(vocab), str(merges), do_lowercase=lower, model_max_length=64)


def xlm(folder: Path, lower: bool = True):
    """An XLM tokenizer, lower-cased without accents (the usual ones) or as it comes (XLM-17 and XLM-100)."""
    from transformers import XLMTokenizer

    vocab, merges = moses_vocabulary(folder, lower=lower)
    return XLMTokenizer(str(vocab), str(merges), do_lowercase_and_remove_accent=lower, model_max_length=64)


VARIANTS = {
    "flaubert": lambda folder: flaubert(folder),
    "flaubert lower-cased": lambda folder: flaubert(folder, lower=True),
    "xlm": lambda folder: xlm(folder),
    "xlm cased": lambda folder: xlm(folder, lower=False),
}
