"""Tiny checkpoints of models that look at pictures: a model of one's own sizes, its processor beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from .vocab import build_tokenizer

LABELS = ("cat", "bus", "sky", "cup")
SIDE = 32

_LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_SEES = {**_LAYERS, "image_size": SIDE, "patch_size": 8}
_SQUARE = {"size": {"height": SIDE, "width": SIDE}}
_DETR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 6,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
_SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}

# Kind: configuration, model, processor and their settings.
KINDS: dict[str, tuple[str, dict[str, Any], str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", _SEES, "ViTForImageClassification", "ViTImageProcessorPil", _SQUARE),
    "vit states": ("ViTConfig", _SEES, "ViTModel", "ViTImageProcessorPil", _SQUARE),
    "vit hidden": (
        "ViTConfig",
        {**_SEES, "encoder_stride": 8},
        "ViTForMaskedImageModeling",
        "ViTImageProcessorPil",
        _SQUARE,
    ),
    "segformer": (
        "SegformerConfig",
        _SEGFORMER,
        "SegformerForSemanticSegmentation",
        "SegformerImageProcessorPil",
        _SQUARE,
    ),
    "yolos": (
        "YolosConfig",
        {**_SEES, "image_size": [SIDE, 48], "num_detection_tokens": 6},
        "YolosForObjectDetection",
        "YolosImageProcessorPil",
        {"size": {"height": SIDE, "width": 48}},
    ),
    "detr": (
        "DetrConfig",
        _DETR,
        "DetrForObjectDetection",
        "DetrImageProcessorPil",
        {"size": {"shortest_edge": SIDE, "longest_edge": 48}},
    ),
    "glpn": (
        "GLPNConfig",
        {**_SEGFORMER, "decoder_hidden_size": 8},
        "GLPNForDepthEstimation",
        "GLPNImageProcessorPil",
        {},
    ),
    "clip": (
        "CLIPConfig",
        {},
        "CLIPModel",
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
    ),
}


def picture_checkpoint(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a checkpoint of that kind, with weights that make outputs differ from picture to picture."""
    config_name, settings, model_name, processor_name, processing = KINDS[kind]
    labels = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    tokenizer = None
    if kind == "clip":
        tokenizer = build_tokenizer("clip")
        words = {**_LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
        words |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
        config = transformers.CLIPConfig(text_config=words, vision_config=dict(_SEES), projection_dim=12)
        tokenizer.save_pretrained(folder)
    else:
        if kind == "detr":
            settings = {**settings, "backbone_config": transformers.ResNetConfig(**_RESNET, out_features=["stage4"])}
        config = getattr(transformers, config_name)(**settings, **labels)
    model = getattr(transformers, model_name)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if not values.is_floating_point() or "logit_scale" in name:
                continue
            noise = torch.randn(values.shape, generator=generator)
            if "running_var" in name:
                values.copy_(1 + 0.2 * noise.abs())
            elif values.dim() == 1:
                values.add_(0.1 * noise)
            else:
                values.copy_(noise * (1.5 / max(values[0].numel(), 1) ** 0.5))
    model.save_pretrained(folder)
    getattr(transformers, processor_name)(**processing).save_pretrained(folder)
    return folder
