"""Small deterministic tokenizers of the three usual kinds, built from a few sentences.

The trainers of `tokenizers` break ties by hash order, so two runs differ; here one plain byte-pair procedure finds the
pieces for all kinds, always the same ones.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "Set an alarm for seven o'clock tomorrow morning, please!",
    "Wolfgang Amadeus lives in Berlin and works for Hugging Face in New York City.",
    "Where does the river Seine flow? Through Paris, of course.",
    "My e-mail is jean-baptiste@example.com; call me at 555-0199.",
    "Machine learning on the telephone is not a dream; it's arithmetic.",
    "Réveille-moi à sept heures, s'il te plaît.",
    "Où se trouve la bibliothèque la plus proche de l'école ?",
    "Schöne Grüße aus München, der Größe wegen.",
    "내일 아침 일곱 시에 깨워 주세요.",
    "오늘 서울 날씨가 어때요?",
    "今天天气怎么样",
    "明日の朝七時に起こしてください",
    "The answer is on the table, the question is in the book.",
    "Is it raining? It was raining yesterday, and the day before.",
    "Play some music and turn off the lights in the living room.",
    "🙂 smile, 🚀 launch and 👩‍👩‍👧 family.",
)

KINDS = ("wordpiece", "bpe", "unigram")
_DEFAULT_CLASS = {"wordpiece": "BertTokenizer", "bpe": "RobertaTokenizer", "unigram": "XLMRobertaTokenizer"}
_KIND_OF_MODEL = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}
# Types whose mapping entry names no concrete class: what their published checkpoints use.
_CLASS_OF_TYPE = {
    "roformer": "BertTokenizer",
    "nystromformer": "AlbertTokenizer",
    "xlm-roberta-xl": "XLMRobertaTokenizer",
}
_SPECIALS = ("cls_token", "pad_token", "sep_token", "unk_token", "bos_token", "eos_token", "mask_token")


def build_tokenizer(model_type: str, kind: str | None = None, max_length: int = 64, merges: int = 300, **options):
    """A tokenizer as published checkpoints of `model_type` have, with a vocabulary learnt from `CORPUS`.

    Args:
        kind: one of `KINDS`; None takes the kind that is natural for the model type.
        merges: how many pieces to learn beyond single characters.
        options: passed to the tokenizer class (`do_lower_case=False`, say).
    """
    if model_type.startswith("modernbert"):
        return _modernbert(max_length, merges)
    name = _CLASS_OF_TYPE.get(model_type) or TOKENIZER_MAPPING_NAMES.get(model_type)
    cls = tokenizer_class_from_name(name) if name else None
    if cls is None or _kind(cls) is None or (kind is not None and _kind(cls) != kind):
        cls = tokenizer_class_from_name(_DEFAULT_CLASS[kind or "wordpiece"])
    kind = _kind(cls)
    empty = cls(**options)
    backend = empty.backend_tokenizer
    specials = _special_tokens(empty)
    words = _words(backend)
    if kind == "wordpiece":
        vocab, _ = _learn(words, merges, joiner="##")
        arguments = {"vocab": {piece: index for index, piece in enumerate([*specials, *vocab])}}
    elif kind == "bpe":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab, pairs = _learn(words, merges, alphabet=alphabet)
        arguments = {"vocab": {p: i for i, p in enumerate([*specials, *vocab])}, "merges": pairs}
    else:
        vocab, _ = _learn(words, merges)
        counts = {piece: sum(word.count(piece) * count for word, count in words.items()) for piece in vocab}
        total = sum(counts.values())
        scored = [(piece, math.log(counts[piece] / total)) for piece in vocab]
        arguments = {"vocab": [*((token, 0.0) for token in specials), *scored]}
    return cls(**arguments, model_max_length=max_length, **options)


def _kind(cls: type) -> str | None:
    """Which kind of vocabulary a tokenizer class is made from; None when it cannot be made from a plain one."""
    parameters = inspect.signature(cls.__init__).parameters
    if "vocab" not in parameters or not hasattr(cls, "train_new_from_iterator"):
        return None
    if "merges" in parameters:
        return "bpe"
    model = getattr(cls, "model", None)
    return _KIND_OF_MODEL[model.__name__] if model is not None else "unigram"


def _special_tokens(empty) -> list[str]:
    """The special tokens in the order that the class itself gives them when it is made with no vocabulary."""
    order = [*empty.get_vocab().items()]
    tokens = [token for token, _ in sorted(order, key=lambda entry: entry[1])]
    named = [str(getattr(empty, name)) for name in _SPECIALS if getattr(empty, name, None) is not None]
    return list(dict.fromkeys([*(t for t in tokens if len(t) > 1), *named]))


def _words(backend: Tokenizer) -> Counter[str]:
    """How often each word of the corpus occurs, as this tokenizer normalises and splits."""
    words: Counter[str] = Counter()
    for text in CORPUS:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer is not None else [(text, (0, 0))]
        words.update(piece for piece, _ in pieces)
    return words


def _learn(
    words: Counter[str], merges: int, joiner: str = "", alphabet: list[str] | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair pieces of some words: the vocabulary in order of learning, and the merged pairs.

    `joiner` marks a piece that continues a word (`##`).
    """
    splits = {word: [word[0], *(joiner + char for char in word[1:])] for word in words if word}
    vocab = dict.fromkeys(alphabet or sorted({piece for pieces in splits.values() for piece in pieces}))
    pairs: list[tuple[str, str]] = []
    for _ in range(merges):
        counts: Counter[tuple[str, str]] = Counter()
        for word, pieces in splits.items():
            for pair in itertools.pairwise(pieces):
                counts[pair] += words[word]
        if not counts:
            break
        left, right = max(counts, key=lambda pair: (counts[pair], pair))
        merged = left + right.removeprefix(joiner)
        vocab[merged] = None
        pairs.append((left, right))
        splits = {word: _merge(pieces, left, right, merged) for word, pieces in splits.items()}
    return list(vocab), pairs


def _merge(pieces: list[str], left: str, right: str, merged: str) -> list[str]:
    result: list[str] = []
    index = 0
    while index < len(pieces):
        if pieces[index : index + 2] == [left, right]:
            result.append(merged)
            index += 2
        else:
            result.append(pieces[index])
            index += 1
    return result


def _modernbert(max_length: int, merges: int):
    """ModernBERT publishes a generic fast tokenizer: byte-level BPE, BERT's special tokens, no token types."""
    probe = Tokenizer(models.BPE())
    probe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab, pairs = _learn(_words(probe), merges, alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*specials, *vocab])}, pairs))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_length,
    )


def reload_tokenizer(folder):
    """The tokenizer as any user would load it from a checkpoint folder."""
    return AutoTokenizer.from_pretrained(folder)
