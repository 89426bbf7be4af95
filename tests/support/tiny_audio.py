"""Tiny checkpoints of models of sound, as folders a user would have: safetensors, config, processor, vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

AUTO_CLASSES = {
    "audio-classification": "AutoModelForAudioClassification",
    "audio-frame-classification": "AutoModelForAudioFrameClassification",
    "audio-xvector": "AutoModelForAudioXVector",
    "automatic-speech-recognition": "AutoModelForCTC",
    "feature-extraction": "AutoModel",
}
LABELS = ("yes", "no", "stop", "go")
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'", "NG")

# A frame each 20 samples from 40 on: short sounds give many frames.
_WAVEFORM: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (8, 4, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "tdnn_dim": (24, 24, 48),
    "tdnn_kernel": (3, 2, 1),
    "tdnn_dilation": (1, 2, 1),
    "xvector_output_dim": 16,
    "classifier_proj_size": 16,
    "vocab_size": len(VOCABULARY),
    "num_codevectors_per_group": 8,
    "mask_time_prob": 0.0,
    "squeeze_factor": 2,
}
_SPECTROGRAM: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_length": 128,
    "num_mel_bins": 32,
}


def tiny_audio_checkpoint(folder: Path, model_type: str, task: str, *, masked: bool = False, **settings: Any) -> Path:
    """Write a tiny checkpoint with lively weights.

    Args:
        masked: of the kind that was trained with padding and masks (layer norms, `return_attention_mask`).
        settings: of the configuration, over those here.
    """
    spectrogram = model_type == "audio-spectrogram-transformer"
    sizes = dict(_SPECTROGRAM if spectrogram else _WAVEFORM)
    if masked:
        sizes |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    sizes |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(sizes | settings))
    model = getattr(transformers, AUTO_CLASSES[task]).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.1
            base = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(base + spread * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if spectrogram:
        extractor: Any = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128, mean=-3.0, std=2.0)
    else:
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    extractor.save_pretrained(folder)
    if task == "automatic-speech-recognition":
        write_vocabulary(folder)
    return folder


def write_vocabulary(folder: Path, **settings: Any) -> Any:
    """The files of a CTC tokenizer; and the tokenizer as it is read from them."""
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(VOCABULARY)}), encoding="utf-8")
    transformers.Wav2Vec2CTCTokenizer(str(vocabulary), **settings).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)
