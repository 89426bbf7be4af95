"""A tiny Whisper: one second of sound at a time, two languages, every time token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

TEXT = ("a small bird sang in the tall old tree", "der kleine Vogel singt", "seven, eight, nine and ten!") * 3
LANGUAGES = ("en", "de")
SECONDS = 1
STEP = 0.02


def tiny_whisper(folder: Path, seed: int = 0, **generation: Any) -> Path:
    """Write a checkpoint with lively random weights. `generation`: settings over those of a published one."""
    tokenizer, ids = _tokenizer(folder)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=50 * SECONDS,
        max_target_positions=48,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(base + (0.5 if parameter.ndim > 1 else 0.1) * torch.randn_like(parameter))
    settings = {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "max_initial_timestamp_index": 20,
        "begin_suppress_tokens": [ids["<|endoftext|>"]],
        "suppress_tokens": [3, 5],
        "max_length": 30,
        **generation,
    }
    model.save_pretrained(folder)
    said = {key: value for key, value in model.generation_config.to_dict().items() if key != "_from_model_config"}
    (folder / "generation_config.json").write_text(json.dumps({**said, **settings}, indent=1), encoding="utf-8")
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> tuple[Any, dict[str, int]]:
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(TEXT, vocab_size=300, show_progress=False)
    files = backend.save_model(str(folder))
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocabulary = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    merges = [tuple(line.split()) for line in Path(files[1]).read_text(encoding="utf-8").splitlines()[1:]]
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    times = [f"<|{index * STEP:.2f}|>" for index in range(round(SECONDS / STEP) + 1)]
    tokenizer.add_tokens([transformers.AddedToken(token, special=False) for token in times])
    tokenizer.save_pretrained(folder)
    for file in files:
        Path(file).unlink()
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    return loaded, {token: loaded.convert_tokens_to_ids(token) for token in special}
