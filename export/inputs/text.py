"""Text: a checkpoint's tokenizer makes a model's inputs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.errors import DamagedError, RequestError
from ...runtime.golden import GoldenCase
from ...runtime.manifest import Dim, TensorSpec, TokenizerSpec
from ..calibration import calibration_texts
from ..reference import Reference
from ..running import NotRun
from ..source import Source, quiet_transformers
from ..texts import CHOICES, LONG, PAIRS, PROBES, SENTENCES
from ..tokenizer import carry_tokenizer, check_tokenizer, prove_tokenizer, tokenizer_inputs
from . import Inputs

# Without --max-length: what phones can afford, whatever a model could take (ModernBERT: 8192).
DEFAULT_MAX_LENGTH = 512
# Multiple choice: how many answers an artifact with bounded axes takes.
_MOST_CHOICES = 8


def text_inputs(
    source: Source,
    model: torch.nn.Module,
    takes: set[str],
    max_length: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Inputs:
    """What a model is fed that takes text.

    Args:
        takes: the names of the parameters of its `forward`.
        max_length: longest input in tokens that was asked for; None: what the model takes, at most 512.
        lengths: the enumerated lengths that were asked for.

    Raises:
        RequestError: the model cannot take inputs that long.
        DamagedError: the tokenizer is not this model's.
    """
    longest, notes = _max_length(source, model, max_length, lengths)
    names = tokenizer_inputs(source, takes)
    preprocess = _prompts(source)
    prompt = preprocess.get("prompts", {}).get(preprocess.get("default_prompt"), "")
    texts = TextInputs(source, names, longest, prompt=prompt)
    _check_vocabulary(source, model)
    if not _knows_seconds(model, texts):
        texts = dataclasses.replace(texts, pairs=False)
        notes = (*notes, "The model has one kind of token (type_vocab_size), so it takes no pairs of texts.")

    def write(root: Path) -> TokenizerSpec:
        spec = carry_tokenizer(source, root, names, longest)
        check_tokenizer(source, root / spec.path, SENTENCES)
        prove_tokenizer(source, root / spec.path, spec)
        return spec

    return Inputs(
        specs=tuple(TensorSpec(name, "int64", _axes(source, longest)) for name in names),
        example=_example(source, texts),
        batches=lambda: text_batches(texts),
        golden=lambda reference: golden_vectors(reference, texts),
        calibration=lambda path: text_feeds(texts, path),
        lines=lambda lines: line_batches(texts, lines),
        preprocess=preprocess,
        write=write,
        notes=notes,
    )


def _axes(source: Source, longest: int) -> tuple[Dim, ...]:
    batch, sequence = Dim(symbol="batch", min=1), Dim(symbol="sequence", min=1, max=longest)
    if source.task.rank == 3:
        return batch, Dim(symbol="choices", min=1, max=_MOST_CHOICES), sequence
    return batch, sequence


def _example(source: Source, texts: TextInputs) -> dict[str, torch.Tensor]:
    """Two rows of ordinary text to trace with."""
    if source.task.rank == 3:
        prompts = [prompt for prompt, choices in CHOICES[:2] for _ in choices]
        answers = [answer for _, choices in CHOICES[:2] for answer in choices]
        encoded = texts.encode(prompts, answers)
        return {name: torch.from_numpy(encoded[name].reshape(2, 3, -1)) for name in texts.names}
    encoded = texts.encode([SENTENCES[5], SENTENCES[18]])
    return {name: torch.from_numpy(encoded[name]) for name in texts.names}


def _prompts(source: Source) -> dict[str, Any]:
    """The manifest's `preprocess` of a checkpoint: the prompts of sentence-transformers."""
    sentence = source.sentence
    if sentence is None or not any(sentence.prompts.values()):
        return {}
    return {"prompts": sentence.prompts, "default_prompt": sentence.default_prompt}


@dataclass(frozen=True)
class TextInputs:
    """Makes the model's inputs from text, with the checkpoint's own tokenizer. `pairs`: whether of two texts too."""

    source: Source
    names: tuple[str, ...]
    max_length: int
    prompt: str = ""
    pairs: bool = True

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        pad_to: int | None = None,
        offsets: bool = False,
    ) -> dict[str, Any]:
        """A padded batch: inputs by name, (N, S) int64; with `offsets` also `offset_mapping`."""
        texts = [self.prompt + text for text in texts]
        with quiet_transformers():
            encoded = self.source.tokenizer(
                texts,
                list(pairs) if pairs is not None else None,
                truncation=self.truncation(pairs is not None),
                max_length=pad_to or self.max_length,
                padding="max_length" if pad_to else len(texts) > 1,  # one text alone needs no padding token
                return_offsets_mapping=offsets,
                return_attention_mask=True,
                return_token_type_ids="token_type_ids" in self.names,
                return_tensors="np",
            )
        wanted = (*self.names, "attention_mask", *(("offset_mapping",) if offsets else ()))
        return {name: np.asarray(encoded[name], np.int64) for name in wanted if name in encoded}

    def truncation(self, pair: bool) -> str:
        """Where tokens are cut: a question is kept whole, its passage is not."""
        return "only_second" if pair and self.source.task.name == "question-answering" else "longest_first"

    def feeds(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, pad_to: int | None = None
    ) -> dict[str, Any]:
        """A batch as the model takes it; multiple choice: one row of choices per call."""
        encoded = self.encode(texts, pairs, pad_to=pad_to)
        arrays = {name: encoded[name] for name in self.names}
        return {name: array[None] for name, array in arrays.items()} if self.source.task.rank == 3 else arrays


def text_batches(inputs: TextInputs) -> list[tuple[str, dict[str, Any]]]:
    """Batches of several languages, lengths and paddings; none is what the model was captured with."""
    task = inputs.source.task
    batches: list[tuple[str, list[str], list[str] | None]] = []
    if task.rank == 3:
        batches = [
            (f"choices {i}", [prompt] * len(choices), list(choices)) for i, (prompt, choices) in enumerate(CHOICES)
        ]
        prompt, choices = CHOICES[0]
        batches.append(("long choices", [LONG + prompt] * 2, list(choices[:2])))
    elif task.name == "question-answering":
        questions, passages = zip(*PAIRS, strict=True)
        batches = [(f"pair {i}", [q], [p]) for i, (q, p) in enumerate(PAIRS)]
        batches += [("batch of pairs", list(questions), list(passages)), ("long passage", [questions[3]], [LONG * 9])]
    else:
        sentences = [_masked(inputs, sentence) for sentence in SENTENCES]
        batches = [(f"sentence {i}", [sentences[i]], None) for i in (0, 1, 3, 11)]
        batches += [
            ("batch of 5", sentences[:5], None),
            ("batch of 8, mixed", sentences[8:16], None),
            ("long and short", [LONG, "ok"], None),
            ("truncated", [LONG * 9], None),
        ]
        if task.name != "fill-mask" and inputs.pairs:
            batches.append(("batch of pairs", [first for first, _ in PAIRS], [second for _, second in PAIRS]))
    return [(name, inputs.feeds(texts, pairs)) for name, texts, pairs in batches]


def line_batches(inputs: TextInputs, texts: Sequence[str | tuple[str, str]]) -> list[tuple[str, dict[str, Any]]]:
    """The user's own texts, or pairs of texts, in small batches of mixed length."""
    batches = []
    size = 1 if inputs.source.task.rank == 3 else 8
    for start in range(0, len(texts), size):
        chunk = texts[start : start + size]
        pairs = [entry[1] for entry in chunk if not isinstance(entry, str)]
        firsts = [entry if isinstance(entry, str) else entry[0] for entry in chunk]
        feeds = inputs.feeds(firsts, pairs if len(pairs) == len(firsts) else None)
        batches.append((f"lines {start + 1}-{start + len(chunk)}", feeds))
    return batches


def text_feeds(inputs: TextInputs, path: Path | None = None) -> list[dict[str, Any]]:
    """A file's texts, or palmtop's own, as the model takes them, one a batch, without padding.

    Raises:
        RequestError: the file is not what it should be.
    """
    task = inputs.source.task
    if path is None and task.rank == 3:
        return [inputs.feeds([prompt] * len(choices), list(choices)) for prompt, choices in CHOICES]
    feeds = []
    for entry in calibration_texts(path, pairs=task.name == "question-answering"):
        if isinstance(entry, str) and (task.rank == 3 or task.name == "question-answering"):
            raise RequestError(
                f"{path}: {task.name} needs JSON lines with a text and a text_pair; this is one text: {entry[:60]!r}."
            )
        first, second = (entry, None) if isinstance(entry, str) else entry
        try:
            feeds.append(inputs.feeds([first], None if second is None else [second]))
        except Exception as error:  # tokenizers raises nothing more precise for a question longer than the model takes
            if path is not None:
                raise RequestError(f"{path}: the model cannot take {first[:60]!r}: {error}.") from error
    return feeds


def golden_vectors(reference: Reference, inputs: TextInputs) -> list[GoldenCase]:
    """The bundle's golden vectors: sentences, pairs, what breaks tokenizers, truncation and padding."""
    task = inputs.source.task
    cases: list[GoldenCase] = []
    if task.rank == 3:
        for index, (prompt, choices) in enumerate(CHOICES):
            cases.append(golden_case(reference, inputs, f"choices {index + 1}", prompt, choices=choices))
        return cases
    if task.name == "question-answering":
        for index, (question, passage) in enumerate(PAIRS):
            cases.append(golden_case(reference, inputs, f"pair {index + 1}", question, passage))
        cases.append(golden_case(reference, inputs, "truncated pair", PAIRS[3][0], LONG * 9))
        for name, text in PROBES:
            # Longformer looks for its separators, and refuses a text with one written in it.
            with contextlib.suppress(NotRun):
                cases.append(golden_case(reference, inputs, name, PAIRS[0][0], text + " end"))
        return cases
    for index, sentence in enumerate(SENTENCES):
        cases.append(golden_case(reference, inputs, f"sentence {index + 1}", _masked(inputs, sentence)))
    cases += [golden_case(reference, inputs, name, text) for name, text in probes(inputs)]
    for index, (first, second) in enumerate(PAIRS if inputs.pairs else ()):
        cases.append(golden_case(reference, inputs, f"pair {index + 1}", first, second))
    cases.append(golden_case(reference, inputs, "truncated", LONG * 9))
    padded = min(32, inputs.max_length)
    cases.append(golden_case(reference, inputs, f"padded to {padded}", _masked(inputs, SENTENCES[0]), pad_to=padded))
    return cases


def probes(inputs: TextInputs) -> list[tuple[str, str]]:
    """What breaks tokenizers, by name; without the texts that are no token to a tokenizer that adds none of its own."""
    return [(name, text) for name, text in PROBES if inputs.encode([text])["input_ids"].size]


def golden_case(
    reference: Reference,
    inputs: TextInputs,
    name: str,
    text: str,
    pair: str | None = None,
    choices: Sequence[str] | None = None,
    pad_to: int | None = None,
) -> GoldenCase:
    firsts = [text] * (len(choices) if choices else 1)
    seconds = list(choices) if choices else [pair] if pair is not None else None
    encoded = inputs.encode(firsts, seconds, pad_to=pad_to, offsets=True)
    offsets = encoded.pop("offset_mapping")
    case = reference.case(name, inputs.feeds(firsts, seconds, pad_to=pad_to), most=512)
    keep = slice(None) if choices else 0
    options: dict[str, Any] = {
        "max_length": pad_to or inputs.max_length,
        "truncation": inputs.truncation(seconds is not None),
    }
    if pad_to:
        options["pad_to"] = pad_to
    return GoldenCase(
        name=name,
        encoding={key: encoded[key][keep] for key in inputs.names},
        outputs={key: rows[0] for key, rows in case.expected.items()},
        text=text,
        text_pair=pair,
        choices=tuple(choices) if choices else None,
        options=options,
        offsets=offsets[keep].tolist(),
    )


def _masked(inputs: TextInputs, sentence: str) -> str:
    """For fill-mask: the sentence with its second word masked."""
    mask = inputs.source.tokenizer.mask_token
    if inputs.source.task.name != "fill-mask" or mask is None:
        return sentence
    words = sentence.split(" ")
    if len(words) > 1:
        words[1] = mask
        return " ".join(words)
    return f"{sentence} {mask}"


def _knows_seconds(model: torch.nn.Module, texts: TextInputs) -> bool:
    """Whether a model has a row for the type that its tokenizer gives the tokens of a second text."""
    if "token_type_ids" not in texts.names or texts.source.task.rank == 3:
        return True
    feeds = texts.feeds(["one"], ["two"])
    if not feeds["token_type_ids"].any():
        return True
    try:
        with torch.no_grad():
            model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    except IndexError:
        return False
    except Exception:  # whatever else it wants is found out when it is run on the cases
        return True
    return True


def _check_vocabulary(source: Source, model: torch.nn.Module) -> None:
    """A tokenizer of another model may give ids beyond the table of embeddings: index errors deep inside the model."""
    rows = None
    with contextlib.suppress(NotImplementedError):
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    with quiet_transformers():
        encoded = source.tokenizer([*SENTENCES, *(text for _, text in PROBES)])["input_ids"]
    highest = max(max(ids, default=0) for ids in encoded)
    if rows is not None and highest >= rows:
        raise DamagedError(
            f"The tokenizer of {source.id} gives id {highest}, but the model's embeddings end at {rows - 1}: "
            "the tokenizer is another model's. Remedy: copy the tokenizer files of the checkpoint that it was "
            "fine-tuned from."
        )


def _max_length(
    source: Source, model: torch.nn.Module, asked: int | None, lengths: Sequence[int] | None
) -> tuple[int, tuple[str, ...]]:
    """The longest input the artifacts will take, and what to tell the user about it."""
    limits = {"its position embeddings": _position_limit(source, model)}
    stated = source.tokenizer.model_max_length
    if stated and stated < 1_000_000:
        limits["its tokenizer"] = int(stated)
    if source.sentence is not None and source.sentence.max_length:
        limits["its sentence-transformers settings"] = source.sentence.max_length
    known = {reason: limit for reason, limit in limits.items() if limit}
    most = min(known.values(), default=None)
    wanted = max(lengths) if lengths else asked
    room = source.tokenizer.num_special_tokens_to_add(pair=True) + 1
    if wanted is not None:
        positions = limits["its position embeddings"]
        if positions and wanted > positions:
            raise RequestError(f"{source.id} takes at most {positions} tokens; {wanted} were asked for.")
        if min([wanted, *(lengths or [])]) < room:
            raise RequestError(
                f"A length of {min([wanted, *(lengths or [])])} leaves no room for text: use at least {room}."
            )
        return wanted, ()
    if most is None or most > DEFAULT_MAX_LENGTH:
        could = "any length" if most is None else f"{most} tokens"
        return DEFAULT_MAX_LENGTH, (
            f"The model could take {could}; exported up to {DEFAULT_MAX_LENGTH} (see --max-length).",
        )
    return most, ()


def _position_limit(source: Source, model: torch.nn.Module) -> int | None:
    """How many tokens have a position: the table's rows, less those that RoBERTa keeps before the first."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in (
            "position_embeddings",
            "pos_embeddings",
        ):
            offset = module.padding_idx + 1 if module.padding_idx is not None else 0
            return module.num_embeddings - offset
    config = source.config
    stated = getattr(config, "max_position_embeddings", None)
    if isinstance(stated, int) and stated > 0:
        # A table under another name: RoBERTa-like models count positions from the padding id on.
        return stated
    return None
