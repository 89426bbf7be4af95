"""One small tokenizer of each kind that a bundle carries, as `tokenizers` pipelines. The same ones every time."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .vocab import CORPUS, _learn, _words, build_tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bert(**options) -> Tokenizer:
    return build_tokenizer("bert", **options).backend_tokenizer


def bert_cased() -> Tokenizer:
    return bert(do_lower_case=False)


def roberta() -> Tokenizer:
    return build_tokenizer("roberta").backend_tokenizer


def gpt2() -> Tokenizer:
    return build_tokenizer("gpt2", "bpe").backend_tokenizer


def modernbert() -> Tokenizer:
    return build_tokenizer("modernbert").backend_tokenizer


def xlm_roberta() -> Tokenizer:
    return build_tokenizer("xlm-roberta").backend_tokenizer


def albert() -> Tokenizer:
    return build_tokenizer("albert").backend_tokenizer


def _byte_pairs(split: pre_tokenizers.PreTokenizer, merges: int = 250) -> tuple[dict[str, int], list]:
    probe = Tokenizer(models.BPE())
    probe.pre_tokenizer = split
    vocab, pairs = _learn(_words(probe), merges, alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    return {token: i for i, token in enumerate(vocab)}, pairs


def tiktoken(pattern: str = LLAMA3) -> Tokenizer:
    """As tiktoken vocabularies are converted: a pattern, then bytes, whole words first, special tokens at the end."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    vocab, pairs = _byte_pairs(split)
    backend = Tokenizer(models.BPE(vocab, pairs, ignore_merges=True))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin|>", "<|end|>", "<|pad|>"])
    start = backend.token_to_id("<|begin|>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[("<|begin|>", start)]
            ),
        ]
    )
    return backend


def metaspace() -> Tokenizer:
    """BPE as Llama 2 and Gemma have it: spaces are `▁`, what is not in the vocabulary becomes bytes."""
    probe = Tokenizer(models.BPE())
    probe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    vocab, pairs = _learn(_words(probe), 200)
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), *vocab]
    ids = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(ids, pairs, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return backend


@functools.cache
def sentencepiece_model(kind: str = "unigram", byte_fallback: bool = False) -> bytes:
    """A model file trained by SentencePiece on the corpus."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=out,
        model_type=kind,
        vocab_size=700 if byte_fallback else 300,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=0.98 if byte_fallback else 1.0,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def _pieces(data: bytes):
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(data)


def t5() -> Tokenizer:
    """Unigram with SentencePiece's own map of characters."""
    proto = _pieces(sentencepiece_model())
    backend = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=0))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 2)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return backend


def unigram_bytes() -> Tokenizer:
    """Unigram that writes unknown characters as bytes."""
    proto = _pieces(sentencepiece_model(byte_fallback=True))
    backend = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return backend


def sentencepiece_bpe() -> Tokenizer:
    """BPE as transformers converts it from a SentencePiece model: merges are all pairs that make a piece."""
    proto = _pieces(sentencepiece_model("bpe"))
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    pairs = [
        (ids[piece], piece[:at], piece[at:])
        for piece in ids
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids and proto.pieces[ids[piece]].type == 1
    ]
    pairs.sort(key=lambda entry: (-proto.pieces[entry[0]].score, ids[entry[1]], ids[entry[2]]))
    merges = [(left, right) for _, left, right in pairs]
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return backend


def characters() -> Tokenizer:
    """One token a character (CANINE's like, protein models): a split by a pattern before a list of words."""
    letters = sorted({character for text in CORPUS for character in text})
    tokens = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters])}
    backend = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\x{0}-\x{10FFFF}]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return backend


def clip() -> Tokenizer:
    """Byte-level BPE with the end of a word marked, lower-cased, and its own pattern."""
    probe = Tokenizer(models.BPE())
    probe.normalizer = normalizers.Lowercase()
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    probe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "removed", invert=True), pre_tokenizers.ByteLevel(False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {t: i for i, t in enumerate([*alphabet, *(f"{a}</w>" for a in alphabet), "he</w>", "th", "the</w>"])}
    tokens |= {"<|startoftext|>": len(tokens), "<|endoftext|>": len(tokens) + 1}
    merges = [("h", "e</w>"), ("t", "h"), ("t", "he</w>")]
    backend = Tokenizer(models.BPE(tokens, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = probe.pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    last = tokens["<|endoftext|>"]
    backend.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", last), ("<|startoftext|>", last - 1), add_prefix_space=False, trim_offsets=False
    )
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return backend


def added() -> Tokenizer:
    """Added tokens with every flag, and the steps that no usual model has."""
    backend = bert()
    backend.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.CharDelimiterSplit("_"),
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.Split("e", "merged_with_previous"),
            pre_tokenizers.Split(Regex("[no]"), "merged_with_next"),
            pre_tokenizers.FixedLength(7),
        ]
    )
    backend.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=True),
            AddedToken("Café", single_word=True, normalized=True),
            AddedToken("<le", normalized=False),
            AddedToken("quick brown", single_word=True, normalized=False, special=True),
        ]
    )
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker
    for maker in (
        bert,
        bert_cased,
        roberta,
        gpt2,
        modernbert,
        xlm_roberta,
        albert,
        tiktoken,
        metaspace,
        t5,
        unigram_bytes,
        sentencepiece_bpe,
        characters,
        clip,
        added,
    )
}
