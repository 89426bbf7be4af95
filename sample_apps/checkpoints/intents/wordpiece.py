"""The vocabulary: a WordPiece tokenizer trained on our own sentences, and random splitting for training."""

from __future__ import annotations

import random
from collections.abc import Iterable

from noise import syllables
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ALPHABET = (
    "abcdefghijklmnopqrstuvwxyzàâäæçéèêëîïôöùûüÿœñáíóúß0123456789!\"#$%&'()*+,-./:;<=>?@[]_{}~°€£¥₩…’‘“”«»·"
    "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A BERT tokenizer of ``size`` pieces, lower-casing, keeping accents and composed Hangul.

    Every letter of the alphabet and every KS X 1001 syllable is a piece at both places of a word, so that French and
    Korean words that the training text lacks are spelled out instead of becoming ``[UNK]``.
    """
    known = set(ALPHABET) | set(syllables())
    letters = sorted(char for char in known if char.isalnum() or not char.isascii())
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        # The trainer meets the "##" letters in an order that changes from run to run, and breaks ties by it. Told of
        # them beforehand, as special tokens, and shown no other, it gives the same pieces each time.
        special_tokens=SPECIALS + [f"##{letter}" for letter in letters],
        initial_alphabet=sorted(known),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    trained = _tokenizer({"[UNK]": 0})
    spelled = ("".join(char for char in text.lower() if char in known or char == " ") for text in texts)
    trained.train_from_iterator(spelled, trainer)
    tokenizer = _tokenizer(trained.get_vocab())
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIALS.index("[CLS]")), ("[SEP]", SPECIALS.index("[SEP]"))],
    )
    return tokenizer


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


class RandomSplitter:
    """WordPiece that sometimes refuses a piece, so that the model meets a word in many spellings.

    This is BPE-dropout carried over: longest match first, but each piece longer than one character is skipped with
    probability ``drop``.
    """

    def __init__(self, tokenizer: Tokenizer, drop: float, rng: random.Random) -> None:
        self.vocabulary = tokenizer.get_vocab()
        self.longest = max(map(len, self.vocabulary))
        self.normalizer = tokenizer.normalizer
        self.pre_tokenizer = tokenizer.pre_tokenizer
        self.drop = drop
        self.rng = rng

    def encode(self, text: str) -> list[int]:
        """Ids of the sentence, ``[CLS]`` and ``[SEP]`` included."""
        ids = [SPECIALS.index("[CLS]")]
        for word, _ in self.pre_tokenizer.pre_tokenize_str(self.normalizer.normalize_str(text)):
            ids += self._split(word)
        return [*ids, SPECIALS.index("[SEP]")]

    def _split(self, word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self.longest), start, -1):
                piece = self.vocabulary.get(prefix + word[start:end])
                if piece is not None and (end == start + 1 or self.rng.random() >= self.drop):
                    break
            else:
                return [SPECIALS.index("[UNK]")]
            ids.append(piece)
            start = end
        return ids
