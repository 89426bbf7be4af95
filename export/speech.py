"""What an app needs to read the outputs of models of sound: their vocabulary, and how time runs in their frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

if TYPE_CHECKING:
    from .source import Source


def frame_times(config: Any) -> dict[str, Any]:
    """The manifest's `samples_per_frame` and `frames` of a model of waveforms; empty where its config has neither.

    `frames`: n steps of the input give floor((n - kernel) / stride) + 1 frames of output, which is what a stack of
    convolutions without padding comes to.
    """
    found: dict[str, Any] = {}
    ratio = getattr(config, "inputs_to_logits_ratio", None)
    if isinstance(ratio, int) and ratio > 0:
        found["samples_per_frame"] = ratio
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple)) and len(kernels) == len(strides):
        layers = list(zip(kernels, strides, strict=True))
        if getattr(config, "add_adapter", False):
            layers += [(1, config.adapter_stride)] * config.num_adapter_layers
        kernel, stride = 1, 1
        for width, step in layers:
            kernel += (width - 1) * stride
            stride *= step
        found["frames"] = {"kernel": kernel, "stride": stride}
    return found


def ctc_vocabulary(source: Source) -> dict[str, Any]:
    """The manifest's `ctc`: the tokens of a CTC model by id, and which of them are none or a space.

    Empty when the checkpoint has no tokenizer, or one of another kind: the artifact then gives logits alone.
    """
    from .source import quiet_transformers

    if not (source.folder / "vocab.json").is_file():
        return {}
    with quiet_transformers():
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=source.trust_remote_code
        )
    if not any(cls.__name__ == "Wav2Vec2CTCTokenizer" for cls in type(tokenizer).__mro__):
        return {}
    rows = max(source.config.vocab_size, len(tokenizer))
    return {
        "ctc": {
            "tokens": tokenizer.convert_ids_to_tokens(list(range(rows))),
            "blank": tokenizer.pad_token,
            "delimiter": tokenizer.word_delimiter_token,
            "space": tokenizer.replace_word_delimiter_char,
            "lower": bool(tokenizer.do_lower_case),
            "unknown": str(tokenizer.unk_token),
        }
    }


def labels(config: Any) -> dict[str, str]:
    """The classes of a head by number."""
    return {str(index): str(label) for index, label in sorted(config.id2label.items())}


def sound_classes(config: Any) -> dict[str, Any]:
    """The manifest's `postprocess` of a classifier of sounds: scores as `transformers.pipeline` makes them."""
    kind = {"regression": "none", "multi_label_classification": "sigmoid"}
    return {"activation": kind.get(getattr(config, "problem_type", None) or "", "softmax"), "id2label": labels(config)}
