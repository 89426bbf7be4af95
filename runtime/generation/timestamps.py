"""Whisper's own rules of generation: what its decoder begins with, and when it says what (Radford et al. 2022).

Everything is data of the checkpoint's generation config: the ids of languages and tasks, the token that forbids
timestamps (those of times follow it), and which time may come first. Results are those of Transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RequestError
from .sampling import Processor, log_softmax

# Transformers counts what was said in windows of half a minute so, whatever the model's own window.
_WINDOW_STEPS = 1500


@dataclass(frozen=True)
class TimedDecoder:
    """How a decoder that can say times is told to. `defaults`: the manifest's `generation`.

    `step` is how many seconds two neighbouring time tokens are apart.
    """

    defaults: Mapping[str, Any]
    step: float

    @property
    def no_times(self) -> int:
        """The token that forbids times."""
        return int(self.defaults["no_timestamps_token_id"])

    @property
    def first_time(self) -> int:
        """The token of 0 s."""
        return self.no_times + 1

    @property
    def languages(self) -> dict[str, int]:
        """Token ids by code (`fr`); empty for models of one language."""
        return {name.strip("<|>"): int(value) for name, value in (self.defaults.get("lang_to_id") or {}).items()}

    def prompt(
        self, language: str | None, task: str | None, times: bool, detect: Callable[[Sequence[int]], int]
    ) -> list[int]:
        """What the decoder begins with.

        Args:
            language, task: as a call asked for them; None: what the checkpoint says, or what is heard.
            detect: the likeliest of some ids as the first token after the start.

        Raises:
            RequestError: a language or task that the model does not have.
        """
        language = language or self.defaults.get("language")
        task = task or self.defaults.get("task")
        begun: list[int | None] = [int(self.defaults["decoder_start_token_id"])]
        if language is None and task is None:
            for place, token in self.defaults.get("forced_decoder_ids") or []:
                if place != len(begun):
                    break
                begun.append(token)
        known = self.languages
        if language is not None:
            begun[1:2] = [self._language(language)]
        elif known and (len(begun) == 1 or begun[1] is None):
            begun[1:2] = [detect(list(known.values()))]
        tasks = {name: int(token) for name, token in (self.defaults.get("task_to_id") or {}).items()}
        if task is not None:
            if task not in tasks:
                raise RequestError(f"Unknown task '{task}'. This model has: {', '.join(tasks) or 'none'}.")
            begun = [token for token in begun if token not in tasks.values()] + [tasks[task]]
        elif language is not None and tasks and not set(begun) & set(tasks.values()):
            begun.append(tasks["transcribe"])
        prompt = [token for token in begun if token is not None and token != self.no_times]
        return prompt if times else [*prompt, self.no_times]

    def _language(self, language: str) -> int:
        known = self.languages
        code = language.lower().strip("<|>")
        if code not in known:
            raise RequestError(
                f"Unknown language '{language}'. This model has: {', '.join(known) or 'one language alone'}."
            )
        return known[code]

    def rules(self, begin: int, eos: int) -> Processor:
        """Times come in pairs and in order, one comes first, and one is said where times are likelier than any text.

        Args:
            begin: how many tokens the decoder began with.
        """
        first, most = self.first_time, self.defaults.get("max_initial_timestamp_index")

        def apply(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
            scores = scores.copy()
            scores[:, self.no_times] = -np.inf
            for row, said in enumerate(ids[:, begin:]):
                timed = said >= first
                last = bool(len(said) and timed[-1])
                before = bool(len(said) < 2 or timed[-2])
                if last and before:
                    scores[row, first:] = -np.inf
                elif last:
                    scores[row, :eos] = -np.inf
                if timed.any():
                    latest = int(said[timed][-1]) + (0 if last and not before else 1)
                    scores[row, first:latest] = -np.inf
            if ids.shape[1] == begin:
                scores[:, :first] = -np.inf
                if most is not None:
                    scores[:, first + int(most) + 1 :] = -np.inf
            likely = log_softmax(scores)
            timed_share = np.logaddexp.reduce(likely[:, first:], axis=1)
            scores[timed_share > likely[:, :first].max(axis=1), :first] = -np.inf
            return scores

        return apply

    def segments(self, said: Sequence[int], window: int, stride: int) -> int:
        """How many steps of the input what was said accounts for: all, or up to the last time that ends a segment.

        Args:
            window: steps of the input that the model heard. stride: steps of the input that one time token is.
        """
        timed = [token >= self.first_time for token in said]
        pairs = [place + 1 for place in range(len(said) - 1) if timed[place] and timed[place + 1]]
        if not pairs or timed[-2:] == [False, True]:
            return window
        return (said[pairs[-1] - 1] - self.first_time) * stride

    def kept(self, said: Sequence[int]) -> list[int]:
        """What of it is kept: what comes after the last finished segment is heard again."""
        timed = [token >= self.first_time for token in said]
        pairs = [place + 1 for place in range(len(said) - 1) if timed[place] and timed[place + 1]]
        if not pairs or timed[-2:] == [False, True]:
            return list(said)
        return list(said[: pairs[-1] + 1])

    def chunks(
        self, said: Sequence[int], special: Collection[int], decode: Callable[[list[int]], str]
    ) -> list[tuple[str, tuple[float | None, float | None]]]:
        """Texts with their start and end in seconds, of all that was said in windows one after the other."""
        found: list[tuple[str, tuple[float | None, float | None]]] = []
        start: float | None = None
        text: list[int] = []
        latest, earlier, offset = 0.0, 0.0, 0.0
        for place, token in enumerate(said):
            if token in special:
                continue
            if token < self.first_time:
                text.append(token)
                continue
            moment = float((token - self.first_time) * self.step)
            if moment < latest:  # the next window has begun
                single = place >= 2 and not (said[place - 1] >= self.first_time and said[place - 2] >= self.first_time)
                if single:
                    offset += self.step * _WINDOW_STEPS
                else:
                    latest = earlier
                    offset += earlier
            earlier, latest = latest, moment
            when = round((token - self.first_time) * self.step + offset, 2)
            if start is None:
                start = when
            elif when != start:
                found.append((decode(text), (start, when)))
                text, start = [], None
        if text:
            found.append((decode(text), (start, None)))
        return found
