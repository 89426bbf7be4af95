"""Tiny checkpoints for any pair of model type and task, made from what Transformers itself says about the two.

    python -m tests.coverage.checkpoints FOLDER MODEL_TYPE TASK

The configuration is shrunk by rules about fields (`shrink.py`); where the model then cannot be built or run, fewer
rules are used. Weights are drawn so that outputs depend on inputs visibly: the usual initialisation gives nearly
constant ones, which hide errors. A tokenizer, an image processor or a feature extractor of the type's class lies
beside the weights.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from .processors import image_size, make_feature_extractor, make_image_processor, parts
from .shrink import FAMILIES, TRUE_SHAPES, default_config, shrink
from .tokenizers import make_tokenizer

# Task: the classes that do it, the first that knows a type is taken.
AUTO_CLASSES: dict[str, tuple[str, ...]] = {
    "text-classification": ("AutoModelForSequenceClassification",),
    "token-classification": ("AutoModelForTokenClassification",),
    "question-answering": ("AutoModelForQuestionAnswering",),
    "fill-mask": ("AutoModelForMaskedLM",),
    "multiple-choice": ("AutoModelForMultipleChoice",),
    "feature-extraction": ("AutoModel",),
    "text-generation": ("AutoModelForCausalLM",),
    "text2text-generation": ("AutoModelForSeq2SeqLM",),
    "image-to-text": ("AutoModelForImageTextToText",),
    "automatic-speech-recognition": ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq"),
    "audio-classification": ("AutoModelForAudioClassification",),
    "audio-frame-classification": ("AutoModelForAudioFrameClassification",),
    "audio-xvector": ("AutoModelForAudioXVector",),
    "image-classification": ("AutoModelForImageClassification",),
    "object-detection": ("AutoModelForObjectDetection",),
    "semantic-segmentation": ("AutoModelForSemanticSegmentation",),
    "image-segmentation": ("AutoModelForImageSegmentation", "AutoModelForUniversalSegmentation"),
    "depth-estimation": ("AutoModelForDepthEstimation",),
    "masked-im": ("AutoModelForMaskedImageModeling",),
    "zero-shot-image-classification": ("AutoModelForZeroShotImageClassification",),
}
LABELS = {
    "text-classification": ("set_alarm", "play_music", "weather"),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}
_MORE_LABELS = tuple(f"class_{index}" for index in range(5))
_LABELLED = (
    *LABELS,
    "image-classification",
    "audio-classification",
    "audio-frame-classification",
    "object-detection",
    "semantic-segmentation",
    "image-segmentation",
)
MAX_LENGTH, TRUE_LENGTH = 64, 512
# Outputs must vary this much over two inputs, as a share of their own size, and be of a size that fp16 can hold.
_LEAST_CHANGE, _LARGEST = 0.003, 1000.0
# What is beyond this was masked by the model (words of the question, in some question answering).
_MASKED = 1e5
# Powers of two first; some models split a width by three (layouts have six coordinates).
_WIDTHS = (32, 48)
# Tasks whose texts are pairs.
_PAIRED = ("question-answering", "multiple-choice")
_GAINS = (1.5, 1.0, 2.0, 0.6)

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


class NoModel(Exception):
    """Transformers has no such model, or none that its own configuration builds at any size."""


@dataclass
class Made:
    """A checkpoint on disk: what it is, and which families of sizes had to stay at their defaults."""

    folder: Path
    model_type: str
    task: str
    model_class: str
    kept: tuple[str, ...]
    parameters: int
    gain: float


def make_checkpoint(folder: Path, model_type: str, task: str, seed: int = 0, true_shapes: bool = False) -> Made:
    """Write a small checkpoint to a folder; with `true_shapes` two layers of the type's default shapes, and its tables.

    Raises:
        NoModel: Transformers has no model of this type for the task, or nothing makes one run.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _typed(model_type, task)
    auto = auto_class(config, task)
    cls = _model_class(auto, config)
    takes = set(inspect.signature(cls.forward).parameters)
    generative = _model_class_or_none("AutoModelForCausalLM", config) is not None or config.is_encoder_decoder
    tokenizer = None
    if takes & {"input_ids", "decoder_input_ids"} or task == "automatic-speech-recognition":
        with tempfile.TemporaryDirectory() as files:
            spoken = next((part.model_type for part in parts(config) if _has_tokenizer(part)), model_type)
            length = TRUE_LENGTH if true_shapes else MAX_LENGTH
            tokenizer = make_tokenizer(spoken, Path(files), length, generative, letters="CTC" in auto)
            _finish_tokenizer(tokenizer, task)
            tokenizer.save_pretrained(folder)
    settings = _settings(config, task, tokenizer)
    error: Exception | None = None
    rows = _rows(tokenizer) if tokenizer is not None and not true_shapes else None
    for keep, width in [(TRUE_SHAPES, 1)] if true_shapes else _strategies():
        try:
            small = shrink(config, rows, keep, settings, width)
            _fit_tokens(small, tokenizer)
            small.architectures = [cls.__name__]  # where a type has several models for a task
            model = getattr(transformers, auto).from_config(small).float().eval().requires_grad_(False)
            gain = _enliven(model, small, tokenizer if task in _PAIRED else None, seed)
        except Exception as raised:  # any size may be the one that this model does not take: try others
            error = error or raised
            continue
        model.save_pretrained(folder)
        for processor in (make_image_processor(small), make_feature_extractor(small)):
            if processor is not None:
                processor.save_pretrained(folder)
        count = sum(parameter.numel() for parameter in model.parameters())
        return Made(folder, model_type, task, type(model).__name__, tuple(keep), count, gain)
    raise NoModel(f"No sizes make {cls.__name__} run: {type(error).__name__}: {error}") from error


def auto_class(config: PretrainedConfig, task: str) -> str:
    """The name of the auto class that loads this type for the task. Raises NoModel."""
    for name in AUTO_CLASSES[task]:
        if _model_class_or_none(name, config) is not None:
            return name
    raise NoModel(f"transformers has no {task} model of type {config.model_type}.")


def _typed(model_type: str, task: str) -> PretrainedConfig:
    """The default configuration of a type; a decoder that reads pictures is put behind an encoder that sees them."""
    config = default_config(model_type)
    try:
        auto_class(config, task)
    except NoModel:
        if task != "image-to-text" or _model_class_or_none("AutoModelForCausalLM", config) is None:
            raise
        encoder = transformers.CONFIG_MAPPING["vit"]()
        composed = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, config)
        composed.decoder_start_token_id = 0
        return composed
    return config


def _model_class_or_none(auto: str, config: PretrainedConfig) -> type | None:
    mapping = getattr(transformers, auto)._model_mapping
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return found[0] if isinstance(found, (tuple, list)) else found


def _model_class(auto: str, config: PretrainedConfig) -> type:
    found = _model_class_or_none(auto, config)
    assert found is not None
    return found


def _has_tokenizer(config: PretrainedConfig) -> bool:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    return TOKENIZER_MAPPING_NAMES.get(config.model_type) is not None


def _strategies() -> Iterator[tuple[tuple[str, ...], int]]:
    """All rules, for two widths; all but one family, all but two, ..., none but the vocabulary."""
    yield from (((), width) for width in _WIDTHS)
    for count in range(1, len(FAMILIES) + 1):
        yield from ((keep, _WIDTHS[0]) for keep in itertools.combinations(FAMILIES, count))


def _rows(tokenizer: Any) -> int:
    """How many rows a table for all ids of a tokenizer has; some have ids beyond what they say is their length."""
    try:
        ids = tokenizer("The test")["input_ids"]
    except ValueError:  # documents: words and where they stand
        ids = tokenizer(["The", "test"], boxes=[[0, 0, 1, 1]] * 2)["input_ids"]
    return max(len(tokenizer), *tokenizer.get_vocab().values(), *ids) + 1


def _finish_tokenizer(tokenizer: Any, task: str) -> None:
    """Those who fine-tune a decoder to label texts pad with its end token; it has none to pad with."""
    if tokenizer.pad_token is None and task not in ("text-generation",):
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token


def _settings(config: PretrainedConfig, task: str, tokenizer: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if task in _LABELLED:
        labels = LABELS.get(task, _MORE_LABELS)
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    if tokenizer is not None:
        for role in ("pad", "bos", "eos", "sep", "cls", "unk", "mask"):
            token = getattr(tokenizer, f"{role}_token_id", None)
            if token is not None and (role in ("pad", "bos", "eos") or hasattr(config, f"{role}_token_id")):
                settings[f"{role}_token_id"] = token
        if getattr(config, "is_encoder_decoder", False):
            other = settings.get("pad_token_id", settings.get("bos_token_id", 0))
            settings["decoder_start_token_id"] = settings.get(f"{_start_role(config)}_token_id", other)
    return settings


def _start_role(config: PretrainedConfig) -> str:
    """Which special token the decoders of a type begin with, by its default configuration; padding, where none."""
    start = getattr(config, "decoder_start_token_id", None)
    roles = ("pad", "eos", "bos")
    return next(
        (role for role in roles if start is not None and getattr(config, f"{role}_token_id", None) == start), "pad"
    )


def _fit_tokens(config: PretrainedConfig, tokenizer: Any) -> None:
    """Ids of tokens that the small vocabulary does not have become its last."""
    size = len(tokenizer) if tokenizer is not None else None
    for part in parts(config):
        rows = getattr(part, "vocab_size", None) or size
        if not isinstance(rows, int):
            continue
        for name, value in list(vars(part).items()):
            if not name.endswith(("token_id", "token_ids", "token_index", "_index")) or isinstance(value, bool):
                continue
            if isinstance(value, int) and value >= rows:
                setattr(part, name, rows - 1)
            elif isinstance(value, list) and value and all(isinstance(entry, int) for entry in value):
                setattr(part, name, [min(entry, rows - 1) for entry in value])
        if tokenizer is not None and part is not config:
            for role in ("pad", "bos", "eos"):
                token = getattr(tokenizer, f"{role}_token_id", None)
                if token is not None and hasattr(part, f"{role}_token_id"):
                    setattr(part, f"{role}_token_id", token)


def _enliven(model: PreTrainedModel, config: PretrainedConfig, tokenizer: Any, seed: int) -> float:
    """Draw weights until outputs depend on inputs and stay of a usual size; the gain that did it.

    Raises:
        ValueError: no gain does.
    """
    inputs = [_inputs(model, config, seed) for seed in (1, 2)]
    if tokenizer is not None:  # some models look for the separator between question and passage
        for feeds, words in zip(inputs, (("what is this?", "a fox"), ("where is it", "the river Seine")), strict=True):
            ids = torch.tensor(tokenizer(*words)["input_ids"])
            drawn = feeds["input_ids"]
            feeds["input_ids"] = ids.expand(*drawn.shape[:-1], -1).clone()
            if drawn.ndim == 3:
                feeds["input_ids"][..., 1] = drawn[..., 1]  # choices that differ
            if "bbox" in feeds:
                feeds["bbox"] = feeds["bbox"][:, :1].repeat(1, feeds["input_ids"].shape[1], 1)
    told = ""
    for gain, settled in [*((gain, False) for gain in _GAINS), (1.0, True)]:
        randomize(model, seed, gain)
        with torch.no_grad():
            if settled:
                _settle(model, inputs[0])
            first, second = (_outputs(model(**feeds)) for feeds in inputs)
        if not first or not all(torch.isfinite(tensor).all() for tensor in first):
            told = "not finite"
            continue
        size = max(float(tensor.std()) for tensor in first)
        changes = [
            float((a - b).abs().max() / a.abs().max().clamp_min(1e-9))
            for a, b in zip(first, second, strict=True)
            if a.shape == b.shape
        ]
        largest = max(float(tensor.abs().max()) for tensor in first)
        if size > 1e-3 and largest < _LARGEST and max(changes, default=1.0) > _LEAST_CHANGE:
            return gain
        told = f"size {size:.3g}, largest {largest:.3g}, change {max(changes, default=0):.3g}"
    raise ValueError(f"outputs are degenerate with all weights: {told}")


def _settle(model: PreTrainedModel, feeds: dict[str, Any]) -> None:
    """Let batch norms have seen what flows through: where gates halve it in each block, drawn statistics do not do."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(**feeds)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def randomize(model: torch.nn.Module, seed: int, gain: float) -> None:
    """Overwrite all weights and statistics: matrices keep the variance of what flows through times `gain` squared,
    scales and shifts of norms vary around one and zero, batch norms have seen something.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    transposed = {
        id(m.weight) for m in model.modules() if type(m).__name__ in ("Conv1D", "ConvTranspose1d", "ConvTranspose2d")
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if id(parameter) in tables:
                parameter.copy_(noise(parameter.shape))
            elif parameter.dim() == 3 and "expert" in name:  # one matrix for each expert
                parameter.copy_(noise(parameter.shape) * gain / parameter.shape[-1] ** 0.5)
            elif parameter.dim() >= 2 and parameter.numel() > max(parameter.shape):
                received = parameter.shape[0] if id(parameter) in transposed else parameter[0].numel()
                parameter.copy_(noise(parameter.shape) * gain / max(received, 1) ** 0.5)
            elif "bias" in last or parameter.dim() >= 2:
                parameter.copy_(0.1 * noise(parameter.shape))
            else:  # scales: around what the model starts from, which is 1, or small where layers are scaled
                start = float(parameter.float().mean())
                start = 1.0 if last == "weight" and start < 0.5 and "norm" in name.lower() and start != 0 else start
                parameter.copy_(start + 0.1 * noise(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * noise(buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.5 * torch.rand(buffer.shape, generator=generator))


def _inputs(model: PreTrainedModel, config: PretrainedConfig, seed: int) -> dict[str, Any]:
    """Inputs that the model's `forward` takes, with contents that depend on the seed."""
    generator = np.random.default_rng(seed)
    takes = inspect.signature(model.forward).parameters
    feeds: dict[str, Any] = {}
    rows = min(
        (part.vocab_size for part in parts(config) if isinstance(getattr(part, "vocab_size", None), int)), default=64
    )
    choices = (3,) if type(model).__name__.endswith("MultipleChoice") else ()
    if "input_ids" in takes and "input_values" not in takes and "input_features" not in takes:
        ids = generator.integers(5, max(rows, 8), (2, *choices, 12))
        feeds["input_ids"] = torch.from_numpy(np.minimum(ids, rows - 1))
        eos = getattr(config, "eos_token_id", None)
        if isinstance(eos, int) and config.is_encoder_decoder:  # sentences end in it
            feeds["input_ids"][..., 1:][feeds["input_ids"][..., 1:] == eos] = 5
            feeds["input_ids"][..., -1] = eos
    extractor = make_feature_extractor(config)
    if extractor is not None and takes.keys() & {"input_values", "input_features"}:
        rate = extractor.sampling_rate
        times = np.arange(rate * 2) / rate
        sound = np.sin(2 * np.pi * (180 + 60 * seed) * times) * 0.3 + generator.normal(0, 0.05, times.shape)
        encoded = extractor(sound.astype(np.float32), sampling_rate=rate, return_tensors="pt")
        feeds |= {name: value for name, value in encoded.items() if name in takes}
    processor = make_image_processor(config)
    if "pixel_values" in takes or "flattened_patches" in takes:
        side = image_size(config)
        channels = next((p.num_channels for p in parts(config) if isinstance(getattr(p, "num_channels", None), int)), 3)
        picture = generator.uniform(0, 1, (channels, side, side)).astype(np.float32)
        feeds["pixel_values"] = torch.from_numpy(picture[None] * 2 - 1)
        if "flattened_patches" in takes and processor is not None:
            del feeds["pixel_values"]
            image = (picture.transpose(1, 2, 0) * 255).astype(np.uint8)
            feeds |= dict(processor(image, return_tensors="pt", max_patches=64))
        if "input_ids" in feeds and takes.keys() & {"decoder_input_ids"}:
            feeds["decoder_input_ids"] = feeds.pop("input_ids")
    if "inputs" in takes and not feeds:  # Perceiver takes whatever its preprocessor does
        if model.config.model_type and type(model).__name__.rpartition("For")[2].startswith("Image"):
            feeds["inputs"] = torch.from_numpy(
                generator.normal(0, 1, (2, 3, image_size(config), image_size(config)))
            ).float()
        else:
            feeds["inputs"] = torch.from_numpy(generator.integers(6, rows, (2, 12)))
    if "bbox" in takes:
        corner = generator.integers(0, 400, (2, 12, 2))
        feeds["bbox"] = torch.from_numpy(np.concatenate([corner, corner + 90], -1))
    if config.is_encoder_decoder and "decoder_input_ids" in takes and "decoder_input_ids" not in feeds:
        batch = next(iter(feeds.values())).shape[0]
        if not type(model).__name__.endswith(("SequenceClassification", "QuestionAnswering")):
            feeds["decoder_input_ids"] = torch.from_numpy(generator.integers(0, rows, (batch, 6)))
    return feeds


def _outputs(result: Any) -> list[torch.Tensor]:
    tensors = [value for value in result.to_tuple() if isinstance(value, torch.Tensor)]
    chosen = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 1][:4]
    return [tensor.masked_fill(tensor.abs() > _MASKED, 0) for tensor in chosen]


if __name__ == "__main__":
    print(make_checkpoint(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
