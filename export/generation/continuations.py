"""What the reference says by itself: greedy text, token by token, which artifacts must say too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from transformers import GenerationMixin

from ...runtime.golden import DECODER_IDS, Continuation, GoldenCase
from ...runtime.verify import Case
from ..source import quiet_transformers

# How many tokens are said, and after how many inputs; by models of more parameters, which take seconds for a token.
_TOKENS, _INPUTS = 64, 3
_LARGE, _TOKENS_OF_LARGE, _INPUTS_OF_LARGE = 300_000_000, 16, 1
# Margins are recorded to this; a second-best that is ruled out is infinitely far behind.
_WIDEST = 1e4


class Speaker:
    """`model.generate` of an eager model, greedily, in fp32 and with its own cache.

    Args:
        context: how many tokens the decoder holds.
        options: for `generate`, beside those that make it greedy.
    """

    def __init__(self, model: torch.nn.Module, context: int, options: Mapping[str, bool] | None = None):
        self.model = model
        self.options = dict(options or {})
        self.context = context
        large = sum(parameter.numel() for parameter in model.parameters()) > _LARGE
        self.inputs, self.tokens = (_INPUTS_OF_LARGE, _TOKENS_OF_LARGE) if large else (_INPUTS, _TOKENS)
        self._said: dict[bytes, Continuation | None] = {}

    def cases(self, cases: list[Case]) -> list[Case]:
        """The cases, with what is said after the first ones of a single row."""
        left, found = self.inputs, []
        for case in cases:
            if left and len(next(iter(case.feeds.values()))) == 1 and (said := self.say(case.feeds)) is not None:
                case, left = dataclasses.replace(case, generated=said), left - 1
            found.append(case)
        return found

    def golden(self, cases: list[GoldenCase]) -> list[GoldenCase]:
        """The golden vectors, with what is said after the first ones."""
        left, found = self.inputs, []
        for case in cases:
            if left and (said := self.say(case.feeds())) is not None:
                case, left = dataclasses.replace(case, generated=said), left - 1
            found.append(case)
        return found

    def say(self, feeds: Mapping[str, np.ndarray]) -> Continuation | None:
        """What is said after an input of one row; None when nothing fits, or Transformers cannot generate with it."""
        given = {name: array for name, array in feeds.items() if name != DECODER_IDS}
        key = b"".join(name.encode() + array.tobytes() for name, array in sorted(given.items()))
        if key not in self._said:
            self._said[key] = self._generated(given)
        return self._said[key]

    def _generated(self, feeds: dict[str, np.ndarray]) -> Continuation | None:
        inputs = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        start = 1
        if not self.model.config.is_encoder_decoder:
            start = inputs["input_ids"].shape[1]
            inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        room = min(self.tokens, self.context - start)
        if room < 1:
            return None
        options = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "max_new_tokens": room}
        options |= self.options
        try:
            with torch.no_grad(), quiet_transformers():
                found = GenerationMixin.generate(
                    self.model, **inputs, **options, return_dict_in_generate=True, output_scores=True
                )
        except Exception:  # a model that Transformers itself cannot generate with is held to its logits alone
            return None
        best = torch.stack(found.scores)[:, 0].topk(2).values
        margins = (best[:, 0] - best[:, 1]).clamp(max=_WIDEST).tolist()
        ids = found.sequences[0, -len(margins) :].tolist()
        return Continuation(tuple(ids), tuple(float(f"{margin:.4g}") for margin in margins))
