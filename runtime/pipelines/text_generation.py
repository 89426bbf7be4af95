"""Text that goes on from a prompt or answers in a chat, at once or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import RequestError
from ..generation.chat import ChatTemplate
from ..generation.generate import Cancel, Job
from ..generation.text import TextGenerator
from ..manifest import Manifest
from ..results import Generated
from ..session import Session
from ..tokenizer import Tokenizer
from .base import Pipeline

_EXPECTED = "a prompt, a chat (a list of {'role', 'content'} messages), or a list of these"


class TextGeneration(Pipeline):
    """What a decoder-only model writes after a prompt, or answers in a chat."""

    task = "text-generation"
    outputs = ("logits",)
    needs_tokenizer = True

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, session: Session):
        super().__init__(manifest, tokenizer, session)
        self.tokenizer = tokenizer
        self.generator = TextGenerator(manifest, tokenizer, session)
        folder = tokenizer.folder
        self.chat_template = ChatTemplate.open(folder, tokenizer.spec.special_tokens) if folder is not None else None

    def __call__(
        self,
        inputs: Any,
        *,
        return_full_text: bool = True,
        cancel: Cancel = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        continue_final_message: bool | None = None,
        chat_variables: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Go on from a prompt or a chat, or from each of a list.

        Args:
            inputs: a prompt, a chat as a list of `{"role": ..., "content": ...}`, or a list of these.
            return_full_text: with the prompt, or the whole chat, before what is new.
            cancel: an event, or a function that says so: stop before the next token and give what there is.
            tools, documents: for the chat template.
            continue_final_message: go on with the chat's last message; None: when it is the assistant's.
            chat_variables: what else the chat template knows (`{"enable_thinking": False}`).
            options: fields of `Settings`: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`,
                `repetition_penalty`, `seed`, `stop_strings` (never part of the text), `num_beams`, ... What is not
                given comes from the checkpoint's generation config.

        Returns:
            A list of `Generated`, one for each of `num_return_sequences`; for a list of inputs a list of such lists.

        Raises:
            RequestError: an option that does not exist, a prompt that does not fit, a chat without a template.
        """
        items, single = _listed(inputs)
        template = {"tools": tools, "documents": documents, "variables": chat_variables}
        results = []
        for item in items:
            continued = _continues(item, continue_final_message)
            job = self._job(item, continued, template, cancel, options)
            texts = self.generator.texts(job)
            results.append([Generated(_whole(item, text, continued) if return_full_text else text) for text in texts])
        return results[0] if single else results

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        cancel: Cancel = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        continue_final_message: bool | None = None,
        chat_variables: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """What is new after one prompt or chat, in pieces as they are made; arguments as in a call.

        Pieces end in whole characters and hold no stop string; joined, they are the text that a call gives with
        `return_full_text=False`. Closing the iterator, or `cancel`, ends the work.
        """
        items, single = _listed(prompt)
        if not single:
            raise RequestError("A stream is of one prompt, or one chat.")
        continued = _continues(items[0], continue_final_message)
        template = {"tools": tools, "documents": documents, "variables": chat_variables}
        return self.generator.stream(self._job(items[0], continued, template, cancel, options))

    def _job(
        self, item: str | list[Any], continued: bool, template: dict[str, Any], cancel: Cancel, options: dict[str, Any]
    ) -> Job:
        settings = self.generator.settings(**options)
        if isinstance(item, str):
            (window,) = self.tokenizer.encode([item], truncation=None)
        else:
            text = self._prompt_of(item, continued, **template)
            (window,) = self.tokenizer.encode([text], truncation=None, add_special_tokens=False)
        return self.generator.job(window.encoding.ids, settings, cancel=cancel)

    def _prompt_of(self, chat: list[Any], continued: bool, tools: Any, documents: Any, variables: Any) -> str:
        if self.chat_template is None:
            raise RequestError("This model has no chat template. Give it a prompt, a text to go on from.")
        return self.chat_template.render(
            chat,
            tools=tools,
            documents=documents,
            add_generation_prompt=not continued,
            continue_final_message=continued,
            **dict(variables or {}),
        )


def _listed(inputs: Any) -> tuple[list[Any], bool]:
    """The prompts and chats of a call, and whether it gave just one. Raises RequestError."""
    if isinstance(inputs, str) or _is_chat(inputs):
        return [inputs], True
    if isinstance(inputs, Sequence) and all(isinstance(item, str) or _is_chat(item) for item in inputs):
        return list(inputs), False
    raise RequestError(f"Expected {_EXPECTED}; got {type(inputs).__name__}: {repr(inputs)[:60]}.")


def _is_chat(item: Any) -> bool:
    listed = isinstance(item, Sequence) and not isinstance(item, (str, bytes)) and len(item) > 0
    return listed and all(isinstance(message, Mapping) for message in item)


def _continues(item: Any, asked: bool | None) -> bool:
    if isinstance(item, str):
        return False
    return item[-1].get("role") == "assistant" if asked is None else asked


def _whole(item: Any, text: str, continued: bool) -> str | list[dict[str, Any]]:
    """What is new behind what was given."""
    if isinstance(item, str):
        return item + text
    chat = [dict(message) for message in item]
    if continued:
        return [*chat[:-1], {"role": chat[-1]["role"], "content": chat[-1]["content"] + text}]
    return [*chat, {"role": "assistant", "content": text}]
