"""What a model's head does: which tensors a task reads from it, and how an app makes results of them.

A task is one entry of `TASKS`. Everything else (which inputs the model takes, how its axes vary) is read off the
checkpoint, so an architecture needs no entry anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..runtime.errors import RequestError
from .sentence import embed

if TYPE_CHECKING:
    from .source import Source


@dataclass(frozen=True)
class Task:
    """A task by its Hugging Face pipeline name.

    `auto_class` loads its models; `heads` are the ends of class names (`BertForMaskedLM`) it is inferred from;
    `outputs` are the fields of the model's output that it needs; `postprocess` gives the manifest's field of that name.
    `rank` is the rank of `input_ids`.
    """

    name: str
    auto_class: str
    heads: tuple[str, ...]
    outputs: tuple[str, ...]
    postprocess: Callable[[Source], dict[str, Any]]
    rank: int = 2


def output_names(source: Source) -> tuple[str, ...]:
    """The names of the tensors that an artifact of this source gives."""
    if source.sentence is not None:
        return (*source.task.outputs, "sentence_embedding")
    return source.task.outputs


def run_task(source: Source) -> Callable[[torch.nn.Module, dict[str, torch.Tensor]], list[torch.Tensor]]:
    """How to call the model: named inputs to the tensors of `output_names`, in order."""
    fields, sentence = source.task.outputs, source.sentence is not None

    def call(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        encoder = model.encoder if sentence else model
        result = encoder(**inputs, **_NO_EXTRAS)
        tensors = [getattr(result, field) for field in fields]
        if sentence:
            tensors.append(embed(model.head, tensors[0], inputs["attention_mask"]))
        return tensors

    return call


# Nothing that a task does not read is computed or returned.
_NO_EXTRAS: dict[str, Any] = {"return_dict": True}


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
        return {"output": "last_hidden_state", "pooling": None, "normalize": False}
    return {
        "output": "sentence_embedding",
        "pooling": source.sentence.pooling,
        "normalize": source.sentence.normalize,
    }


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
        ),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
            ("start_logits", "end_logits"),
            lambda source: {"activation": "softmax"},
        ),
        Task(
            "fill-mask",
            "AutoModelForMaskedLM",
            ("ForMaskedLM", "ForPreTraining", "WithLMHeadModel"),
            ("logits",),
            lambda source: {"activation": "softmax"},
        ),
        Task(
            "multiple-choice",
            "AutoModelForMultipleChoice",
            ("ForMultipleChoice",),
            ("logits",),
            lambda source: {"activation": "softmax"},
            rank=3,
        ),
        Task("feature-extraction", "AutoModel", ("Model",), ("last_hidden_state",), _embedding),
    )
}

# Other names that Hugging Face uses for the same.
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "masked-lm": "fill-mask",
    "sentence-similarity": "feature-extraction",
}


def get_task(name: str) -> Task:
    """The task of that name or alias. Raises RequestError with the known names."""
    task = TASKS.get(ALIASES.get(name, name))
    if task is None:
        raise RequestError(f"Unknown task '{name}'. Known tasks: {', '.join(TASKS)}.")
    return task


def infer_task(architectures: list[str] | None, sentence: bool) -> Task:
    """The task that a checkpoint was saved for, from its class name.

    Raises:
        RequestError: the class says no task that palmtop exports; `--task` can.
    """
    if sentence:
        return TASKS["feature-extraction"]
    names = architectures or []
    for name in names:
        for task in TASKS.values():
            if any(name.endswith(head) and (head != "Model" or "For" not in name) for head in task.heads):
                return task
    said = f"its config names {', '.join(names)}" if names else "its config names no architecture"
    raise RequestError(
        f"Cannot tell the task of this checkpoint: {said}. Name it with --task. Known tasks: {', '.join(TASKS)}."
    )
