"""Chats as prompts: the checkpoint's chat template, rendered by Jinja in a sandbox as Transformers renders it.

A template is a program from somebody else. It sees plain data only, may call nothing but a few functions, and cannot
reach Python's internals through what it is given.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedError, RequestError

TEMPLATE = "chat_template.jinja"
OTHERS = "additional_chat_templates"
# Older versions of Jinja have known ways out of the sandbox.
_LEAST_JINJA = (3, 1, 6)
# What a message's reasoning is called; templates read one of the first two.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTINUED = "CONTINUED_MESSAGE_ENDS_HERE "

Message = Mapping[str, Any]


class ChatTemplate:
    """The templates of a tokenizer folder.

    Args:
        templates: Jinja source by name; the usual one is `default`.
        special_tokens: by role (`bos`, `eos`, ...), which templates know as `bos_token`, ...
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]):
        self.templates = dict(templates)
        self.variables = {f"{role}_token": token for role, token in special_tokens.items()}

    @classmethod
    def open(cls, folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The templates of a tokenizer folder; None when it has none. Raises DamagedError when one is not text."""
        paths = {path.stem: path for path in sorted((folder / OTHERS).glob("*.jinja"))}
        if (folder / TEMPLATE).is_file():
            paths["default"] = folder / TEMPLATE
        try:
            templates = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedError(f"A chat template of the bundle cannot be read: {error}.") from error
        return cls(templates, special_tokens) if templates else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a chat, special tokens included.

        Args:
            messages: `{"role": ..., "content": ...}` and whatever else the template knows (`tool_calls`).
            tools: JSON schemas of functions the model may call.
            documents: `{"title": ..., "text": ...}` to answer from.
            add_generation_prompt: end with what begins the model's answer.
            continue_final_message: end inside the last message, which the model goes on with.
            template: the name of one; None: `tool_use` when there are tools and such a template, else the default.
            variables: what else the template knows (`enable_thinking=False`).

        Raises:
            RequestError: not a chat, one that the template refuses, or Jinja is not installed.
        """
        source = self.templates[self._chosen(template, tools is not None)]
        chat = [self._message(message) for message in _messages(messages)]
        if continue_final_message:
            if add_generation_prompt:
                raise RequestError("A chat either goes on with its last message or begins an answer, not both.")
            final = _final_content(chat, source)
        text = _rendered(
            source,
            {
                **self.variables,
                **variables,
                "messages": chat,
                "tools": _tools(tools),
                "documents": None if documents is None else [_mapping(entry, "A document") for entry in documents],
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return _cut(text, final) if continue_final_message else text

    def _chosen(self, name: str | None, with_tools: bool) -> str:
        if name is None:
            name = "tool_use" if with_tools and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise RequestError(f"There is no chat template '{name}'. The bundle has: {', '.join(self.templates)}.")
        return name

    @staticmethod
    def _message(message: Message) -> dict[str, Any]:
        """Without what is None, which many templates would print, and with reasoning under the names they read."""
        plain = {key: value for key, value in _plain(message).items() if value is not None}
        reasoning = next((plain[name] for name in _REASONING if name in plain), None)
        return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _messages(messages: Any) -> list[Message]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError('A chat is a list of messages, {"role": ..., "content": ...}, at least one.')
    for message in messages:
        if "role" not in _mapping(message, "A message"):
            raise RequestError(f"A message needs a role: {str(message)[:60]}.")
    return list(messages)


def _mapping(entry: Any, what: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise RequestError(f"{what} must be a dictionary, not {type(entry).__name__}: {repr(entry)[:60]}.")
    return _plain(entry)


def _tools(tools: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if any(callable(tool) for tool in tools):
        raise RequestError("Tools must be JSON schemas; transformers.utils.get_json_schema makes one of a function.")
    return [_mapping(tool, "A tool") for tool in tools]


def _final_content(chat: list[dict[str, Any]], source: str) -> str:
    """Mark where the last message ends, and give its text."""
    content = chat[-1].get("content")
    if content is None or "content" not in source:
        raise RequestError("The last message has no content that could be continued.")
    if isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUED
        return content
    blocks = [block for block in content if isinstance(block, dict) and "text" in block]
    if not blocks:
        raise RequestError("The last message has no text that could be continued.")
    final = blocks[-1]["text"]
    blocks[-1]["text"] = final + _CONTINUED
    return final


def _cut(text: str, final: str) -> str:
    """The rendered chat up to the mark; spaces before it go where the template trimmed the message."""
    at = text.rfind(_CONTINUED.strip())
    if at < 0 or final.strip() not in text:
        raise RequestError("The chat template does not render the last message as it is, so it cannot be continued.")
    return text[:at] if text[at : at + len(_CONTINUED)] == _CONTINUED else text[:at].rstrip()


def _plain(value: Any) -> Any:
    """Plain JSON values; anything else as the name of its type, so that a template can call nothing on it."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, str):  # of a subclass the value alone
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value)) if isinstance(value, tuple) else list(map(_plain, value))
    return f"<{type(value).__name__}>"


def _rendered(source: str, variables: dict[str, Any]) -> str:
    template, errors = _compiled(source)
    try:
        return template.render(**_plain(variables))
    except (errors, TypeError, ValueError, KeyError, AttributeError, RecursionError, ZeroDivisionError) as error:
        raise RequestError(f"The chat template refuses this chat: {error}.") from error


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[Any, type[Exception]]:
    """The template, and the class of the errors it raises."""
    jinja2 = _jinja()
    environment = _environment(jinja2)
    try:
        return environment.from_string(source), jinja2.exceptions.TemplateError
    except jinja2.exceptions.TemplateError as error:
        raise DamagedError(f"The bundle's chat template is not valid: {error}.") from error


def _jinja() -> Any:
    remedy = "Install it with: pip install 'palmtop[generate]'"
    if importlib.util.find_spec("jinja2") is None:
        raise RequestError(f"Chat templates need Jinja. {remedy}")
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _LEAST_JINJA:
        least = ".".join(map(str, _LEAST_JINJA))
        raise RequestError(f"Chat templates need Jinja {least} or later, not {jinja2.__version__}. {remedy}")
    return jinja2


def _environment(jinja2: Any) -> Any:
    """Jinja as chat templates expect it: with what they may call, and without what they must not reach."""

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks the model's own words for training; they are rendered as they are."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> str:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """No attribute with a leading underscore, which would be a way to Python's internals."""

        def __init__(*arguments: Any, **attributes: Any) -> None:
            self, given = arguments[0], dict(*arguments[1:], **attributes)
            for name in given:
                _public(name)
            jinja2.utils.Namespace.__init__(self, given)

        def __setitem__(self, name: str, value: Any) -> None:
            _public(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

    class Dictionary:
        """`dict(...)` without the class and its attributes."""

        def __call__(self, *arguments: Any, **entries: Any) -> dict[Any, Any]:
            return dict(*arguments, **entries)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    def _public(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=Dictionary(), namespace=Namespace
    )
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as models were trained on it; Jinja's own filter writes `<` and `&` as HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
