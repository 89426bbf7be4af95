"""From a prompt's ids to new ids: one after the other (`tokens`), or the best sequences (`sequences`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import RequestError
from .beam import Beams, beam_search
from .sampling import Processor, draw, process, processors
from .settings import Settings

Cancel = threading.Event | Callable[[], bool] | None


@dataclass(frozen=True)
class Job:
    """What is to be generated.

    `start` begins a conversation; `prompt` are the ids to go on from, at least one; `context` is how many tokens the
    model holds; `encoder_ids`, (1, S), what the encoder of an encoder-decoder read; `extra` are processors of the
    caller's own; `cancel` stops before the next token: an event, or a function that is asked; `watch` makes, for each
    sequence that is not a beam, a function of its tokens one by one that says when it is done.
    """

    start: Callable[[], Beams]
    prompt: tuple[int, ...]
    settings: Settings
    context: int | None = None
    encoder_ids: np.ndarray | None = None
    extra: tuple[Processor, ...] = ()
    cancel: Cancel = None
    watch: Callable[[], Callable[[int], bool]] | None = None

    @property
    def longest(self) -> int:
        """How many tokens there may be at the end. Raises RequestError when the prompt leaves no room at all."""
        if not self.prompt:
            raise RequestError("There is nothing to go on from: the prompt has no tokens, and the model no first one.")
        if self.context is not None and len(self.prompt) >= self.context:
            raise RequestError(
                f"The prompt has {len(self.prompt)} tokens and the model's context is {self.context}, which leaves no "
                "room for an answer. Shorten it."
            )
        return self.settings.longest(len(self.prompt), self.context)

    def processors(self) -> list[Processor]:
        """What happens to the logits of each step."""
        return processors(self.settings, len(self.prompt), self.longest, self.encoder_ids, self.extra)

    def cancelled(self) -> bool:
        if self.cancel is None:
            return False
        return self.cancel.is_set() if isinstance(self.cancel, threading.Event) else self.cancel()


def tokens(job: Job, random: np.random.Generator | None = None) -> Iterator[int]:
    """New tokens one at a time, the end token included, until it, the longest length, or the cancelling.

    Args:
        random: where sampling's numbers come from; None: a new generator from the settings' seed.

    Raises:
        RequestError: the prompt does not fit.
    """
    longest, steps = job.longest, job.processors()
    random = random or np.random.default_rng(job.settings.seed)
    first = length = len(job.prompt)
    ids = np.zeros((1, max(longest, first)), np.int64)
    ids[0, :first] = job.prompt
    conversation = job.start()
    done = job.watch() if job.watch is not None else lambda token: False
    while length < longest and not job.cancelled():
        logits = conversation.feed(ids[:, :first] if length == first else ids[:, length - 1 : length])
        scores = process(steps, ids[:, :length], logits)
        token = int(draw(scores, random)[0]) if job.settings.do_sample else int(scores[0].argmax())
        ids[0, length] = token
        length += 1
        yield token
        if token in job.settings.eos_token_id or done(token):
            return


def forced(job: Job, said: Sequence[int]) -> Iterator[int]:
    """The likeliest token at each place of `said`, given those of `said` before it.

    Raises:
        RequestError: the prompt does not fit.
    """
    steps, conversation = job.processors(), job.start()
    ids = np.array([[*job.prompt, *said]], np.int64)
    for length in range(len(job.prompt), ids.shape[1]):
        new = ids[:, :length] if length == len(job.prompt) else ids[:, length - 1 : length]
        yield int(process(steps, ids[:, :length], conversation.feed(new))[0].argmax())


def sequences(job: Job) -> list[list[int]]:
    """`num_return_sequences` lists of new tokens, end tokens included: the best beams, or draws one after the other.

    Raises:
        RequestError: the prompt does not fit, or more sequences are asked for than can differ.
    """
    settings = job.settings
    wanted = settings.num_return_sequences
    random = np.random.default_rng(settings.seed)
    if settings.num_beams > 1:
        if wanted > settings.num_beams:
            raise RequestError(f"{settings.num_beams} beams cannot give {wanted} sequences.")
        drawn = random if settings.do_sample else None
        prompt = np.array([job.prompt], np.int64)
        found = beam_search(job.start(), prompt, settings, job.processors(), job.longest, drawn, job.cancelled)
        return [list(hypothesis.ids) for hypothesis in found]
    if wanted > 1 and not settings.do_sample:
        raise RequestError(f"Greedy search finds one sequence, not {wanted}. Ask for do_sample=True, or num_beams.")
    return [list(tokens(job, random)) for _ in range(wanted)]
