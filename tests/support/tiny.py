"""Tiny checkpoints of any encoder architecture, made from its configuration: small sizes, lively random weights.

`tiny_checkpoint` writes what a user would have on disk: a Hugging Face folder (safetensors, config, tokenizer) or, for
`sentence-similarity`, a sentence-transformers one.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from .vocab import build_tokenizer

AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "multiple-choice": "AutoModelForMultipleChoice",
    "feature-extraction": "AutoModel",
    "sentence-similarity": "AutoModel",
}
LABELS = {
    "text-classification": ("set_alarm", "play_music", "weather"),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}

# What sizes are called in configurations; a configuration takes those that it has.
_SIZES = {
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "emb_dim": 32,
    "embedding_size": 16,
    "input_embedding_size": 16,
    "output_embedding_size": 16,
    "true_hidden_size": 32,
    "intra_bottleneck_size": 32,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "n_heads": 4,
    "n_head": 4,
    "head_dim": 8,
    "d_head": 8,
    "intermediate_size": 48,
    "hidden_dim": 48,
    "d_inner": 48,
    "block_sizes": [1, 1],
    "block_repeats": [1, 1],
    "block_size": 8,
    "num_buckets": 4,
    "num_groups": 1,
    "conv_kernel_size": 3,
    "segment_means_seq_len": 4,
    "num_landmarks": 4,
    "local_attention": 16,
    "position_buckets": 8,
    "entity_vocab_size": 20,
    "entity_emb_size": 16,
}
# What published checkpoints of a type have that the configuration's defaults do not.
_TYPICAL = {
    # DeBERTa v3
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    },
    "deberta": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    },
    "big_bird": {"attention_type": "original_full"},
    "longformer": {"attention_window": [8, 8]},
    "lilt": {"max_2d_position_embeddings": 64, "channel_shrink_ratio": 2, "hidden_size": 48, "num_attention_heads": 4},
    "luke": {"use_entity_aware_attention": False},
    "camembert": {"type_vocab_size": 1},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "modernbert": {"global_attn_every_n_layers": 2},
    "mobilebert": {"num_feedforward_networks": 2, "intermediate_size": 64},
    "squeezebert": {"embedding_size": 32},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
# Without layer normalisation the signal must not grow from layer to layer.
_GAIN = {"mobilebert": 0.6}

transformers.utils.logging.disable_progress_bar()


def tiny_config(model_type: str, vocab_size: int = 500, max_length: int = 64, **overrides) -> PretrainedConfig:
    """The configuration of `model_type` with every size that it has made small, and no dropout.

    Tables of positions hold `max_length` tokens and the offset that RoBERTa-like models start counting from.
    """
    default = AutoConfig.for_model(model_type)
    positions = dict.fromkeys(("max_position_embeddings", "max_position", "max_seq_len"), max_length + 8)
    sizes = {name: size for name, size in (_SIZES | positions).items() if _settable(default, name, size)}
    sizes["vocab_size"] = vocab_size
    sizes |= {
        name: 0.0 for name in default.to_dict() if "dropout" in name and isinstance(getattr(default, name), float)
    }
    return AutoConfig.for_model(model_type, **{**sizes, **_TYPICAL.get(model_type, {}), **overrides})


def _settable(config: PretrainedConfig, name: str, value: object) -> bool:
    """Whether the configuration has this entry and lets it be changed (Funnel counts its layers itself)."""
    try:
        if not hasattr(config, name):
            return False
        setattr(config, name, value)
    except NotImplementedError:
        return False
    return True


def tiny_model(config: PretrainedConfig, task: str, seed: int = 0) -> PreTrainedModel:
    """A model for a task with random weights, large enough that outputs differ clearly between inputs."""
    torch.manual_seed(seed)
    model = getattr(transformers, AUTO_CLASSES[task]).from_config(config)
    randomize(model, seed, _GAIN.get(config.model_type, 1.5))
    return model.float().eval().requires_grad_(False)


def randomize(model: torch.nn.Module, seed: int = 0, gain: float = 1.5) -> None:
    """Overwrite all parameters: matrices keep the variance of what flows through times `gain`, vectors stay near
    their neutral value. The usual initialisation (std 0.02) makes nearly constant outputs, which hide errors.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(noise)
            elif parameter.dim() >= 2:
                parameter.copy_(noise * gain / max(parameter[0].numel(), 1) ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))


def tiny_checkpoint(
    folder: Path,
    model_type: str,
    task: str,
    tokenizer_kind: str | None = None,
    *,
    labels: tuple[str, ...] | None = None,
    max_length: int = 64,
    seed: int = 0,
    config: dict | None = None,
    tokenizer_options: dict | None = None,
    pooling: str = "mean",
    normalize: bool = True,
) -> Path:
    """Write a tiny checkpoint to `folder` and return it.

    Args:
        model_type: a Transformers model type (`bert`, `deberta-v2`, ...).
        task: a key of `AUTO_CLASSES`.
        tokenizer_kind: `wordpiece`, `bpe` or `unigram`; None: the one natural for the type.
        labels: names of the classes, for tasks that have them.
        config: further settings of the configuration (`{"problem_type": "multi_label_classification"}`).
        pooling, normalize: what a sentence-transformers folder states (`sentence-similarity` only).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(model_type, tokenizer_kind, max_length, **(tokenizer_options or {}))
    settings: dict = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id", None) for role in ("pad", "bos", "eos")
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    labels = labels or LABELS.get(task)
    if labels is not None:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
    settings |= config or {}
    model = tiny_model(tiny_config(model_type, len(tokenizer), max_length, **settings), task, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if task == "sentence-similarity":
        _write_sentence_transformers(folder, model.config.hidden_size, pooling, normalize, max_length)
    return folder


def _write_sentence_transformers(folder: Path, width: int, pooling: str, normalize: bool, max_length: int) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    pool: dict = {"word_embedding_dimension": width}
    pool |= {f"pooling_mode_{name}": mode == pooling for mode, name in modes.items()}
    files = {
        "modules.json": entries,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "1_Pooling/config.json": pool,
    }
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(content, indent=2), encoding="utf-8")
    if normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)


def tasks_of(model_type: str) -> list[str]:
    """The tasks that Transformers has a model of this type for."""
    found = []
    for task, name in AUTO_CLASSES.items():
        mapping = getattr(transformers, name)._model_mapping
        if type(AutoConfig.for_model(model_type)) in mapping:
            found.append(task)
    return found


def model_inputs(model: PreTrainedModel, encoding: dict) -> dict:
    """Those entries of an encoding that the model's `forward` takes."""
    accepted = inspect.signature(model.forward).parameters
    return {name: value for name, value in encoding.items() if name in accepted}
