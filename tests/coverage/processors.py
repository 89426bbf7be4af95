"""The image processor or feature extractor that a model type uses, for the sizes of a small configuration."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from .shrink import IMAGE


def make_image_processor(config: PretrainedConfig) -> Any | None:
    """The processor of the configuration's type (or of the part that sees), or None when it has none."""
    for part in parts(config):
        names = IMAGE_PROCESSOR_MAPPING_NAMES.get(part.model_type)
        if not names:
            continue
        name = names if isinstance(names, str) else names.get("pil") or next(iter(names.values()))
        cls = getattr(transformers, name, None)
        if cls is None:
            continue
        with contextlib.suppress(ImportError):  # some are written with torchvision alone: ViT's stands in for them
            return cls(**_image_sizes(cls, config, part))
    if _takes(config, "pixel_values"):
        return transformers.ViTImageProcessorPil(size={"height": image_size(config), "width": image_size(config)})
    return None


def make_feature_extractor(config: PretrainedConfig) -> Any | None:
    """The feature extractor of the configuration's type (or of the part that hears), or None when it has none."""
    for part in parts(config):
        name = FEATURE_EXTRACTOR_MAPPING_NAMES.get(part.model_type)
        cls = getattr(transformers, name, None) if name else None
        if cls is None or "Image" in name:
            continue
        frames = getattr(part, "feature_projection_input_dim", None)
        if frames and cls.model_input_names[0] not in _reads(config) and "input_features" in _reads(config):
            # Two neighbouring frames are read as one.
            return transformers.SeamlessM4TFeatureExtractor(feature_size=frames // 2, num_mel_bins=frames // 2)
        given = set(inspect.signature(cls.__init__).parameters)
        sizes = {
            "num_mel_bins": getattr(part, "num_mel_bins", None) or getattr(part, "input_feat_per_channel", None),
            "max_length": getattr(part, "max_length", None) if getattr(part, "frequency_stride", None) else None,
            "feature_size": getattr(part, "num_mel_bins", None) or getattr(part, "input_feat_per_channel", None),
        }
        if getattr(part, "feat_extract_norm", None) == "layer":
            sizes["return_attention_mask"] = True
        return cls(**{key: value for key, value in sizes.items() if value is not None and key in given})
    return None


def parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configuration and those inside it."""
    found = [config]
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            found += parts(value)
    return found


def image_size(config: PretrainedConfig) -> int:
    for part in parts(config):
        size = getattr(part, "image_size", None)
        if isinstance(size, int):
            return size
        if isinstance(size, (list, tuple)) and size:
            return int(size[0])
    return IMAGE


def _image_sizes(cls: type, config: PretrainedConfig, part: PretrainedConfig) -> dict[str, Any]:
    side = image_size(config)
    options: dict[str, Any] = {}
    size = getattr(cls, "size", None)
    if isinstance(size, dict) and size:
        if set(size) == {"shortest_edge", "longest_edge"}:
            options["size"] = {"shortest_edge": side, "longest_edge": side * 3 // 2}
        else:
            options["size"] = dict.fromkeys(size, side)
    crop = getattr(cls, "crop_size", None)
    if isinstance(crop, dict) and crop:
        options["crop_size"] = dict.fromkeys(crop, side)
    return options


def _takes(config: PretrainedConfig, name: str) -> bool:
    return name in _reads(config)


def _reads(config: PretrainedConfig) -> set[str]:
    """What the model of a configuration can be called with."""
    cls = transformers.AutoModel._model_mapping.get(type(config), None)
    cls = cls[0] if isinstance(cls, (tuple, list)) else cls
    return set(inspect.signature(cls.forward).parameters) if cls is not None else set()
