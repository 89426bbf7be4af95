"""A decoder that is the PyTorch model itself, without a cache: what generation is tested over before any export."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers


def tiny_decoder(seed: int = 0, vocab_size: int = 40, context: int = 64) -> torch.nn.Module:
    """A causal language model whose next token depends strongly on what came before."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=context, bos_token_id=0, eos_token_id=1
    )
    return _sharpened(transformers.GPT2LMHeadModel(config))


def tiny_encoder_decoder(seed: int = 0, vocab_size: int = 40) -> torch.nn.Module:
    """An encoder-decoder of the same kind."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return _sharpened(transformers.T5ForConditionalGeneration(config))


def _sharpened(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


class EagerConversation:
    """Sequences of tokens in a model, each run again as a whole for every token."""

    def __init__(self, model: torch.nn.Module, encoder_ids: np.ndarray | None = None):
        self.model = model
        self.encoder_ids = encoder_ids
        self.ids = np.zeros((1, 0), np.int64)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def feed(self, ids: np.ndarray) -> np.ndarray:
        self.ids = np.concatenate([self.ids, ids], axis=1)
        tensor = torch.from_numpy(self.ids)
        if self.encoder_ids is None:
            logits = self.model(tensor).logits
        else:
            encoder = torch.from_numpy(np.repeat(self.encoder_ids, len(self.ids), axis=0))
            logits = self.model(input_ids=encoder, decoder_input_ids=tensor).logits
        return logits[:, -1].numpy()

    def reorder(self, rows: Sequence[int]) -> None:
        self.ids = self.ids[list(rows)]
