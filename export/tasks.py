"""What a model's head does: which tensors a task reads from it, and how an app makes results of them.

A task is one entry of `TASKS`. Everything else (which inputs the model takes, how its axes vary) is read off the
checkpoint, so an architecture needs no entry anywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..runtime.errors import RequestError
from .detection import detection_settings
from .running import running
from .sentence import embed
from .speech import ctc_vocabulary, frame_times, sound_classes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from .source import Source


TEXT, AUDIO = frozenset({"text"}), frozenset({"audio"})
IMAGE = frozenset({"image"})


@dataclass(frozen=True)
class Task:
    """A task by its Hugging Face pipeline name.

    auto_class: loads its models. heads: the ends of class names (`BertForMaskedLM`) that it is inferred from.
    outputs: the fields of the model's output that it needs; none: those that the model has (`found_outputs`).
    postprocess: gives the manifest's field of that name. rank: of `input_ids`.
    per_token: outputs whose second axis follows the tokens. kinds: of input that it takes (`inputs.KINDS`).
    generates: whether it gives text, a token at a time.
    otherwise: the same task as models of another make do it (speech recognition by CTC, or by a decoder).
    """

    name: str
    auto_class: str
    heads: tuple[str, ...]
    outputs: tuple[str, ...]
    postprocess: Callable[[Source], dict[str, Any]]
    rank: int = 2
    per_token: tuple[str, ...] = ()
    kinds: frozenset[str] = TEXT
    generates: bool = False
    otherwise: Task | None = None


def output_names(source: Source, model: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The names of the tensors that an artifact of this source gives."""
    if source.sentence is not None:
        return ("last_hidden_state", "sentence_embedding")
    return source.task.outputs or found_outputs(model, example)


def found_outputs(model: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """What a model without a head gives: its last hidden state, or all tensors of a model of several towers."""
    with torch.no_grad(), running(model, example):
        result = model(**_fed(model, example, reads_own_text(model, example)), **_settings(model))
    tensors = tuple(
        name for name, value in result.items() if isinstance(value, torch.Tensor) and value.is_floating_point()
    )
    if "last_hidden_state" in tensors:
        return ("last_hidden_state",)
    if not tensors:
        raise RequestError(f"{type(model).__name__} gives no tensor by name: {', '.join(result)}.")
    return tensors


def run_task(
    source: Source, names: Sequence[str], own_text: bool = False
) -> Callable[[torch.nn.Module, dict[str, torch.Tensor]], list[torch.Tensor]]:
    """How to call the model: named inputs to the tensors of `names` (`output_names`), in order.

    own_text: whether it `reads_own_text`.
    """
    sentence = source.sentence is not None

    def call(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        encoder = model.encoder if sentence else model
        result = encoder(**_fed(encoder, inputs, own_text), **_settings(encoder))
        tensors = [getattr(result, name) for name in names if name != "sentence_embedding"]
        if sentence:
            tensors.append(embed(model.head, tensors[0], inputs["attention_mask"]))
        return tensors

    return call


def reads_own_text(model: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> bool:
    """Whether a model's decoder must be given the text too (T5, Pegasus, Blenderbot; BART and its like do without)."""
    takes = inspect.signature(model.forward).parameters
    if "decoder_input_ids" not in takes or "input_ids" not in example or "decoder_input_ids" in example:
        return False
    try:
        with torch.no_grad():
            model(**example, **_settings(model))
    except (ValueError, TypeError, AttributeError):  # each says in its own way that the decoder has no ids
        return True
    return False


def _fed(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], own_text: bool) -> dict[str, torch.Tensor]:
    """Inputs with those of the decoder where it `reads_own_text`: the text, one place later, as when it is trained."""
    if not own_text:
        return dict(inputs)
    ids, config = inputs["input_ids"], model.config
    found = (getattr(config, name, None) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
    first = next((token for token in found if isinstance(token, int)), 0)
    places = torch.arange(ids.shape[1])
    shifted = ids[:, (places - 1).clamp(min=0)]  # not `ids[:, :-1]`, which torch.export wants two tokens or more for
    return {**inputs, "decoder_input_ids": torch.where(places == 0, first, shifted)}


def _settings(model: torch.nn.Module) -> dict[str, Any]:
    """Named outputs; and no cache, which only generation reads."""
    takes = inspect.signature(model.forward).parameters
    return {"return_dict": True, **({"use_cache": False} if "use_cache" in takes else {})}


def _labels(source: Source) -> dict[str, str]:
    return {str(index): str(label) for index, label in sorted(source.config.id2label.items())}


def _classification(source: Source) -> dict[str, Any]:
    config = source.config
    kind = getattr(config, "problem_type", None)
    if kind == "regression" or (kind is None and config.num_labels == 1 and kind != "multi_label_classification"):
        # transformers.pipeline: one label is a score of its own, squashed unless the model says it is a regression.
        activation = "none" if kind == "regression" else "sigmoid"
    else:
        activation = "sigmoid" if kind == "multi_label_classification" else "softmax"
    return {"activation": activation, "id2label": _labels(source)}


def _embedding(source: Source) -> dict[str, Any]:
    if source.sentence is None:
        states = {"output": "last_hidden_state", "pooling": None, "normalize": False}
        return {**states, **(frame_times(source.config) if source.feature_extractor is not None else {})}
    return {
        "output": "sentence_embedding",
        "pooling": source.sentence.pooling,
        "normalize": source.sentence.normalize,
    }


def _against_labels(source: Source) -> str:
    """Trained with a bias of its logits (SigLIP, arXiv:2303.15343), each pair of picture and text is a yes or no."""
    return "sigmoid" if "logit_bias" in source.weight_names() else "softmax"


def _generating(name: str, auto_class: str, heads: tuple[str, ...], kinds: frozenset[str]) -> Task:
    return Task(name, auto_class, heads, ("logits",), lambda source: {}, kinds=kinds, generates=True)


TASKS = {
    task.name: task
    for task in (
        Task(
            "text-classification",
            "AutoModelForSequenceClassification",
            ("ForSequenceClassification",),
            ("logits",),
            _classification,
        ),
        Task(
            "token-classification",
            "AutoModelForTokenClassification",
            ("ForTokenClassification",),
            ("logits",),
            lambda source: {"activation": "softmax", "id2label": _labels(source)},
            per_token=("logits",),
        ),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
            ("start_logits", "end_logits"),
            lambda source: {"activation": "softmax"},
            per_token=("start_logits", "end_logits"),
        ),
        Task(
            "fill-mask",
            "AutoModelForMaskedLM",
            ("ForMaskedLM", "ForPreTraining", "WithLMHeadModel"),
            ("logits",),
            lambda source: {"activation": "softmax"},
            per_token=("logits",),
        ),
        Task(
            "multiple-choice",
            "AutoModelForMultipleChoice",
            ("ForMultipleChoice",),
            ("logits",),
            lambda source: {"activation": "softmax"},
            rank=3,
        ),
        Task(
            "feature-extraction",
            "AutoModel",
            ("Model",),
            (),
            _embedding,
            per_token=("last_hidden_state",),
            kinds=frozenset({"text", "image", "audio"}),
        ),
        Task(
            "image-classification",
            "AutoModelForImageClassification",
            (
                "ForImageClassification",
                "ForImageClassificationWithTeacher",
                "ForImageClassificationLearned",
                "ForImageClassificationFourier",
                "ForImageClassificationConvProcessing",
            ),
            ("logits",),
            _classification,
            kinds=IMAGE,
        ),
        Task(
            "object-detection",
            "AutoModelForObjectDetection",
            ("ForObjectDetection",),
            ("logits", "pred_boxes"),
            lambda source: {
                **detection_settings(source.image_processor, source.config, source.id),
                "id2label": _labels(source),
            },
            kinds=IMAGE,
        ),
        Task(
            "image-segmentation",
            "AutoModelForSemanticSegmentation",
            ("ForSemanticSegmentation",),
            ("logits",),
            lambda source: {"activation": "none", "id2label": _labels(source)},
            kinds=IMAGE,
        ),
        Task(
            "depth-estimation",
            "AutoModelForDepthEstimation",
            ("ForDepthEstimation",),
            ("predicted_depth",),
            lambda source: {},
            kinds=IMAGE,
        ),
        Task(
            "masked-im",
            "AutoModelForMaskedImageModeling",
            ("ForMaskedImageModeling",),
            ("reconstruction",),
            lambda source: {},
            kinds=IMAGE,
        ),
        Task(
            "zero-shot-image-classification",
            "AutoModelForZeroShotImageClassification",
            (),
            ("logits_per_image",),
            lambda source: {"activation": _against_labels(source), "template": "This is a photo of {}."},
            kinds=frozenset({"image", "text"}),
        ),
        Task(
            "audio-classification",
            "AutoModelForAudioClassification",
            ("ForAudioClassification",),
            ("logits",),
            lambda source: sound_classes(source.config),
            kinds=AUDIO,
        ),
        Task(
            "audio-frame-classification",
            "AutoModelForAudioFrameClassification",
            ("ForAudioFrameClassification",),
            ("logits",),
            lambda source: {**sound_classes(source.config), "activation": "sigmoid", **frame_times(source.config)},
            kinds=AUDIO,
        ),
        Task(
            "audio-xvector",
            "AutoModelForAudioXVector",
            ("ForXVector",),
            ("logits", "embeddings"),
            lambda source: {"output": "embeddings"},
            kinds=AUDIO,
        ),
        Task(
            "automatic-speech-recognition",
            "AutoModelForCTC",
            ("ForCTC",),
            ("logits",),
            lambda source: {**frame_times(source.config), **ctc_vocabulary(source)},
            kinds=AUDIO,
            otherwise=_generating(
                "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq", ("ForSpeechSeq2Seq",), AUDIO
            ),
        ),
        _generating("text-generation", "AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"), TEXT),
        _generating("text2text-generation", "AutoModelForSeq2SeqLM", ("ForConditionalGeneration", "MTModel"), TEXT),
        _generating("image-to-text", "AutoModelForImageTextToText", ("VisionEncoderDecoderModel",), IMAGE),
    )
}

# Other names that Hugging Face uses for the same.
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "masked-lm": "fill-mask",
    "sentence-similarity": "feature-extraction",
    "summarization": "text2text-generation",
    "translation": "text2text-generation",
    "image-feature-extraction": "feature-extraction",
    "semantic-segmentation": "image-segmentation",
    "masked-image-modeling": "masked-im",
}


def get_task(name: str) -> Task:
    """The task of that name or alias. Raises RequestError with the known names."""
    task = TASKS.get(ALIASES.get(name, name))
    if task is None:
        raise RequestError(f"Unknown task '{name}'. Known tasks: {', '.join(TASKS)}.")
    return task


def infer_task(config: PretrainedConfig, sentence: bool) -> Task:
    """The task that a checkpoint was saved for, from its class: as transformers has it, else by the name's end.

    Raises:
        RequestError: the class says no task that palmtop exports; `--task` can.
    """
    if sentence:
        return TASKS["feature-extraction"]
    names = config.architectures or []
    for name in names:
        ended = [task for task in TASKS.values() if any(_ends(name, head) for head in task.heads)]
        # A `ForSequenceClassification` of a model of sounds classifies sounds.
        saved = [task for task in TASKS.values() if _saved_for(name, task, config)]
        # Transformers has BART's `ForConditionalGeneration` fill masks too; it is named for what it is.
        for task in [*(task for task in saved if task in ended), *saved, *ended]:
            return task
    said = f"its config names {', '.join(names)}" if names else "its config names no architecture"
    raise RequestError(
        f"Cannot tell the task of this checkpoint: {said}. Name it with --task. Known tasks: {', '.join(TASKS)}."
    )


def fitting(task: Task, config: PretrainedConfig) -> Task:
    """The task as models of this checkpoint's make do it: of two makes the one that the checkpoint was saved as."""
    other = task.otherwise
    if other is None:
        return task
    saved = set(config.architectures or [])
    if saved & _classes(task, config):
        return task
    return other if saved & _classes(other, config) or not _classes(task, config) else task


def _ends(name: str, head: str) -> bool:
    return name.endswith(head) and (head != "Model" or "For" not in name)


def _saved_for(name: str, task: Task, config: PretrainedConfig) -> bool:
    return name in _classes(task, config) or (task.otherwise is not None and name in _classes(task.otherwise, config))


def _classes(task: Task, config: PretrainedConfig) -> set[str]:
    """The names of transformers' classes for a task and a kind of checkpoint."""
    mapping = getattr(getattr(transformers, task.auto_class), "_model_mapping", {})
    try:
        found = mapping[type(config)]
    except KeyError:
        return set()
    return {cls.__name__ for cls in (found if isinstance(found, (tuple, list)) else (found,))}
