"""Configurations of any Transformers model type with every size made small, by what a field is called and holds.

A default configuration states a published model; its sizes stand in relations that the constructors rely on (heads
divide widths, a stage's input is the stage before it). So widths are all divided by one number, heads are chosen to
divide what they divide, and lists keep their lengths. Where a model does not take the result, `checkpoints.py` asks
for fewer of the rules below (`FAMILIES`) until it does. No rule names a model type.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import transformers
from transformers import PretrainedConfig

# What can be left at the default when a model does not take it smaller, in the order in which that is tried.
FAMILIES = ("other", "heads", "positions", "image", "lists", "widths", "layers")
# What stays for layers of the published shapes: fewer of them is all that is made smaller.
TRUE_SHAPES = ("other", "heads", "positions", "image", "widths")

WIDTH = 32
HEAD = 8
POSITIONS = 72
IMAGE = 64

_WIDTHS = re.compile(
    r"(^|_)(sizes?|dims?|width|channels|embd|inner|rank|d_model|d_inner|d_ff|d_latents|factor_dim|n_embd|ffn_hidden_size)$"
    r"|^d_(model|ff|inner|embed|latents)$|_(hidden_size|hidden_dim|embed_dim|ffn_dim|lora_rank)$"
)
_NOT_WIDTHS = re.compile(
    r"vocab|image_|patch|kernel|window|type_|block_size|stride|chunk|pool(ing)?_size|grid|bucket|max_|num_channels"
    r"|batch|context|head_dim|sample|bins|memory|cache|crop|train_size|eval_size|shape(?!_size$)|rope|rotary|^in_chan|levels"
    r"|landmark|d_kv|d_head|conv_pos|frame|anchor|group_size|segment|num_mel|feature_size|num_feat|channels_per"
)
_LAYERS = re.compile(
    r"^(n|num|encoder|decoder|num_hidden|num_encoder|num_decoder|encoder_num_hidden|decoder_num_hidden|enc|dec)_"
    r"(hidden_)?layers?$|^depth$|_depth$|^num_self_attends_per_block$|^(num|n)_(text|vision|audio|transformer)_layers$"
)
_HEADS = re.compile(r"(^|_)n?_?(attention_)?heads?$|^n_heads?$|num_heads$")
_MAIN_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim")
_KEY_HEADS = re.compile(r"(key_value|kv)_heads?$")
_POSITIONS = re.compile(
    r"^(max_position(_embeddings)?|n_positions|n_ctx|max_seq_len(gth)?|max_target_positions|seq_len|context_length)$"
)
_VOCABULARY = re.compile(r"vocab_size(_per_\w+)?$|^n_words$")
_EXPERTS = re.compile(r"^(n|num|moe_num|n_routed|num_local)_(routed_|local_)?experts$")
# What must only not be larger than this; a value below stays.
_CAPS = {
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_queries": 12,
    "num_latents": 16,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "block_size": 8,
    "num_buckets": 16,
    "position_buckets": 16,
    "squeeze_factor": 2,
    "local_attention": 16,
    "sliding_window": 16,
    "max_2d_position_embeddings": 1024,
    "entity_vocab_size": 20,
    "hidden_expansion": 1.0,
    "mem_len": 16,
    "depth_coefficient": 0.1,
}
_PIECEWISE = re.compile(r"^(attention_window|window_size)$")


def shrink(
    config: PretrainedConfig,
    vocabulary: int | None,
    keep: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    width: int = WIDTH,
) -> PretrainedConfig:
    """A small configuration of the same class.

    Args:
        vocabulary: rows of the tables of tokens; None leaves them as they are.
        keep: families of fields that stay at their defaults.
        settings: further fields of the top configuration.
        width: what the smallest of the main widths becomes.
    """
    sizes = config.to_dict()
    ratio, settings = _ratio(sizes, width), settings or {}
    small = _shrunk(sizes, ratio, vocabulary, set(keep))
    small |= settings
    for name in ("transformers_version", "_name_or_path", "id2label", "label2id"):
        if name not in settings:
            small.pop(name, None)
    return _made(type(config), small)


def default_config(model_type: str) -> PretrainedConfig:
    """The configuration that a type has by itself, or of parts that have some when it has none."""
    cls = transformers.CONFIG_MAPPING[model_type]
    try:
        return cls()
    except (ValueError, TypeError, AttributeError, KeyError):
        parts = {"encoder": "vit" if "vision" in model_type else "wav2vec2", "decoder": "bert"}
        if "text" in model_type or model_type == "encoder-decoder":
            parts["encoder"] = "vit" if "vision" in model_type else "bert"
        return cls(**{name: transformers.CONFIG_MAPPING[part]().to_dict() for name, part in parts.items()})


def _made(cls: type, values: dict[str, Any]) -> PretrainedConfig:
    """The configuration with these values; those that its constructor refuses are left out (some are derived)."""
    values = {name: value for name, value in values.items() if name != "model_type"}
    for _ in range(12):
        try:
            return cls(**values)
        except (NotImplementedError, AttributeError, TypeError) as error:
            named = [name for name in values if re.search(rf"\b{re.escape(name)}\b", str(error))]
            if not named:
                raise
            for name in named:
                del values[name]
    raise ValueError(f"{cls.__name__} takes none of these sizes.")


def _ratio(sizes: Mapping[str, Any], width: int) -> float:
    """By how much all widths are divided: the smallest of the main ones becomes `width`."""
    found = [value for name, value in _walk(sizes) if re.search(r"^(hidden_size|d_model|n_embd|dim|emb_dim)$", name)]
    if found:
        return max(min(found) / width, 1.0)
    lists = [value for name, value in _walk_lists(sizes) if re.search(r"hidden_sizes|embed_dims?|dims$", name)]
    return max(min(max(entry) for entry in lists) / (2 * width), 1.0) if lists else 8.0


def _walk(sizes: Mapping[str, Any]) -> list[tuple[str, int]]:
    found = []
    for name, value in sizes.items():
        if isinstance(value, Mapping):
            found += _walk(value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            found.append((name, value))
    return found


def _walk_lists(sizes: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    found = []
    for name, value in sizes.items():
        if isinstance(value, Mapping):
            found += _walk_lists(value)
        elif isinstance(value, (list, tuple)) and value and all(type(entry) is int for entry in value):
            found.append((name, list(value)))
    return found


def _shrunk(sizes: Mapping[str, Any], ratio: float, vocabulary: int | None, keep: set[str]) -> dict[str, Any]:
    small = dict(sizes)
    depth = _depth(sizes, keep)
    for name, value in sizes.items():
        if isinstance(value, Mapping):
            if name not in ("id2label", "label2id", "rope_parameters", "rope_scaling", "task_specific_params"):
                small[name] = _backbone(_shrunk(value, ratio, vocabulary, keep), keep)
        elif value is None and name == "vocab_size" and vocabulary is not None:  # ESM leaves it to its users
            small[name] = vocabulary
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, (int, float)):
            small[name] = _number(name, value, ratio, vocabulary, keep)
        elif isinstance(value, (list, tuple)):
            small[name] = _list(name, list(value), ratio, keep, depth)
    _heads(sizes, small, keep)
    if depth and "layers" not in keep:
        for name, value in small.items():
            if type(value) is int and _LAYERS.search(name) and sizes[name] > 1 and not _counts_stages(sizes, value):
                small[name] = min(value, depth[1]) if sizes[name] == depth[0] else min(value, 2)
    _stages(sizes, small)
    for name, value in sizes.items():
        if "dropout" in name and isinstance(value, float):
            small[name] = 0.0
        if name.endswith("layerdrop"):
            small[name] = 0.0
    return small


def _stages(sizes: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Names of stages follow from their number; those to be given out that are gone are not asked for."""
    small.pop("stage_names", None)
    stages = sizes.get("stage_names")
    if stages and small.get("out_features"):
        layers = next((small[n] for n in small if _LAYERS.search(n) and type(small[n]) is int), None)
        if layers is not None and not _counts_stages(sizes, layers) and len(stages) > layers + 1:
            small.pop("out_features", None)
            small.pop("out_indices", None)


def _counts_stages(sizes: Mapping[str, Any], value: int) -> bool:
    depths = sizes.get("depths") or sizes.get("depth")
    return isinstance(depths, (list, tuple)) and len(depths) == value


def _depth(sizes: Mapping[str, Any], keep: set[str]) -> tuple[int, int] | None:
    """How many layers there are, and how many are kept: two, or one for each layer that another field points at."""
    counts = [value for name, value in sizes.items() if type(value) is int and value > 1 and _LAYERS.search(name)]
    if not counts or "layers" in keep:
        return None
    pointed = [
        len(value)
        for name, value in sizes.items()
        if isinstance(value, (list, tuple)) and name.endswith("indices") and all(type(entry) is int for entry in value)
    ]
    return max(counts), max([2, *pointed])


def _number(name: str, value: float, ratio: float, vocabulary: int | None, keep: set[str]) -> float:
    if _VOCABULARY.search(name) and vocabulary is not None and value >= 200:
        return vocabulary
    if "positions" not in keep and _POSITIONS.search(name) and value > POSITIONS:
        return POSITIONS
    if "image" not in keep and re.search(r"(^|_)image_size$", name) and value > IMAGE:
        return IMAGE
    if "other" not in keep:
        if name in _CAPS and isinstance(value, (int, float)):
            return min(value, _CAPS[name])
        if _EXPERTS.search(name):
            return min(value, 4)
        if name == "window_size" and value > 32:
            return 16
    if type(value) is int and "widths" not in keep and is_width(name) and value >= 16:
        return divided(value, ratio)
    return value


def is_width(name: str) -> bool:
    return bool(_WIDTHS.search(name)) and not _NOT_WIDTHS.search(name)


def divided(value: int, ratio: float) -> int:
    """A width made smaller: a multiple of eight, at least eight, except that one that was small stays."""
    return value if ratio <= 1 else min(value, max(HEAD, math.ceil(value / ratio / 8 - 1e-6) * 8))


def _list(name: str, value: list[Any], ratio: float, keep: set[str], depth: tuple[int, int] | None) -> list[Any]:
    if not value or "lists" in keep:
        return value
    integers = all(type(entry) is int for entry in value)
    if name == "attention_types":  # [[["global", "local"], 12]]: patterns and how often each is repeated
        return [[entry[0], 1] for entry in value]
    if depth and "layers" not in keep and len(value) == depth[0] and depth[0] > 4:
        return _representative(value, depth[1])
    if not integers:
        return value
    if name.endswith("indices") and name != "out_indices" and depth and max(value) >= depth[1]:
        return list(range(depth[1] - len(value), depth[1]))
    if re.search(r"depths?$|^block_sizes$|num_blocks$|numb_of_layers$|^layers$", name):
        return [min(entry, index + 1) for index, entry in enumerate(value)]
    if re.search(r"image_size$|^(train|eval)_size$", name) and "image" not in keep:
        return [min(entry, IMAGE) for entry in value]
    if _PIECEWISE.search(name) and "other" not in keep:
        return [min(entry, 8) for entry in value]
    if "widths" not in keep and is_width(name):
        return [divided(entry, ratio) if entry >= 16 else entry for entry in value]
    return value


def _representative(value: list[Any], count: int) -> list[Any]:
    """So many of the entries that every kind occurs, as far as there is room."""
    kinds = list(dict.fromkeys(map(str, value)))
    if len(kinds) > 1 and count >= 2:
        first, last = value[0], next(entry for entry in reversed(value) if str(entry) != str(value[0]))
        return [first] * (count - 1) + [last]
    return value[:count]


def _heads(sizes: Mapping[str, Any], small: dict[str, Any], keep: set[str]) -> None:
    """Heads that divide the width they split, with eight channels or more each; queries per key as they were."""
    if "heads" in keep:
        return
    main = next((small[n] for n in _MAIN_WIDTHS if type(small.get(n)) is int), None)
    published = next((sizes[n] for n in _MAIN_WIDTHS if type(sizes.get(n)) is int), None)
    stages = [v for n, v in small.items() if isinstance(v, (list, tuple)) and is_width(n)]
    whole, chosen = None, None
    for name, value in sizes.items():
        if not _HEADS.search(name) or _KEY_HEADS.search(name):
            continue
        if isinstance(value, (list, tuple)) and value and all(type(entry) is int for entry in value):
            base = small.get("embed_dim")
            widths = next((entry for entry in stages if len(entry) == len(value)), None)
            if widths is None and type(base) is int:
                widths = [base * 2**stage for stage in range(len(value))]
            if widths is not None:
                small[name] = [_dividing(width, most) for width, most in zip(widths, value, strict=True)]
        elif type(value) is int and main and value > 1:
            small[name] = _dividing(main, value)
            whole, chosen = value, small[name]
            for other, count in sizes.items():
                same_side = other.split("_")[0] in (name.split("_")[0], "num", "n")
                if _KEY_HEADS.search(other) and type(count) is int and same_side:
                    small[other] = max(1, small[name] * count // value)
    stated = next((sizes[n] for n in ("head_dim", "d_kv", "d_head") if type(sizes.get(n)) is int), None)
    if stated is None or not whole or not chosen or not main:
        head = HEAD
    else:  # heads that do not make up the width (Gemma) do not in the small model either
        head = main // chosen if stated * whole == published else 2 * HEAD
    for name in ("head_dim", "d_kv", "d_head", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"):
        value = sizes.get(name)
        if type(value) is int and value >= 16:
            small[name] = head if value == stated else max(HEAD, value * head // (stated or 64))
    left = {"num_key_value_heads": chosen, "head_dim": head}  # what some leave to each checkpoint
    small.update({name: value for name, value in left.items() if chosen and sizes.get(name, 0) is None})
    if type(sizes.get("rotary_dim")) is int:
        small["rotary_dim"] = HEAD // 2
    if type(sizes.get("qk_head_dim")) is int and "qk_nope_head_dim" in small:
        small["qk_head_dim"] = small["qk_nope_head_dim"] + small["qk_rope_head_dim"]


def _dividing(width: int, most: int) -> int:
    fitting = [count for count in range(1, min(most, 4) + 1) if width % count == 0 and width // count >= HEAD]
    return max(fitting, default=1)


def _backbone(part: dict[str, Any], keep: set[str]) -> dict[str, Any]:
    """Backbones of the timm package, which is not installed here, become the ResNet that Transformers has."""
    if part.get("model_type") != "timm_backbone":
        return part
    with contextlib.suppress(ImportError):
        import timm  # noqa: F401

        return part
    config = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    sizes = config.to_dict()
    return _shrunk(sizes, 16.0, None, keep)
