"""Chats become the prompts that `tokenizer.apply_chat_template` makes of them, and templates can do no harm."""

import importlib.util
import json

import numpy as np
import pytest
import transformers
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.generation.chat import ChatTemplate

from ...support.vocabularies import gpt2
from .chat_templates import TEMPLATES

SPECIAL = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Today\'s weather <in a city> & "quotes", é',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {}}},
]
DOCUMENTS = [{"title": f"T{i}", "text": "text & <more>"} for i in range(4)]
USER, ANSWER = {"role": "user", "content": " Hé! 🙂 "}, {"role": "assistant", "content": "Well,\n yes "}
SYSTEM = {"role": "system", "content": "Be <brief>."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    ],
}
RESULT = {"role": "tool", "content": '{"degrees": 3}', "tool_call_id": "abcdef123"}
CHATS = {
    "one question": [USER],
    "a system message": [SYSTEM, USER],
    "several turns": [USER, ANSWER, {"role": "user", "content": "And?"}],
    "an answer at the end": [SYSTEM, USER, ANSWER],
    "tools called": [USER, CALL, RESULT, ANSWER],
    "blocks": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}],
    "thoughts": [USER, {"role": "assistant", "content": "Yes.", "reasoning": "hm\n"}],
    "thoughts in the text": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}],
    "roles that do not alternate": [USER, USER],
    "an unknown role": [{"role": "robot", "content": "beep"}],
}
OPTIONS = {
    "plain": {},
    "an answer to come": {"add_generation_prompt": True},
    "tools": {"tools": TOOLS, "add_generation_prompt": True},
    "documents": {"documents": DOCUMENTS},
    "no thinking": {"enable_thinking": False, "add_generation_prompt": True, "date_string": "1 Jan 2026"},
    "the last message goes on": {"continue_final_message": True},
}


def reference(source):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=gpt2(), bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=source
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_prompts_are_those_of_transformers(source, options):
    theirs, ours = reference(source), ChatTemplate({"default": source}, SPECIAL)
    rendered = 0
    for name, chat in CHATS.items():
        try:
            expected = theirs.apply_chat_template(chat, tokenize=False, **options)
        except Exception:  # TemplateError, ValueError, TypeError: what the template, or the chat, gives rise to
            with pytest.raises(RequestError):
                ours.render(chat, **options)
        else:
            rendered += 1
            assert ours.render(chat, **options) == expected, name
    assert rendered >= 3


def test_a_message_that_the_template_trims_goes_on_where_it_was_trimmed():
    source = TEMPLATES["gemma"]
    chat = [USER, {"role": "assistant", "content": "Once upon "}]
    ours = ChatTemplate({"default": source}, SPECIAL).render(chat, continue_final_message=True)
    assert ours == reference(source).apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert ours.endswith("Once upon")


def test_templates_of_a_folder_are_found_by_name(tmp_path):
    assert ChatTemplate.open(tmp_path, SPECIAL) is None
    (tmp_path / "chat_template.jinja").write_text("plain {{ eos_token }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with {{ tools|length }} tools")
    found = ChatTemplate.open(tmp_path, SPECIAL)
    assert found.render([USER]) == "plain </s>"
    assert found.render([USER], tools=TOOLS) == "with 2 tools"
    assert found.render([USER], tools=TOOLS, template="default") == "plain </s>"
    with pytest.raises(RequestError, match="default"):
        found.render([USER], template="rag")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ dict.__class__.__bases__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set n = namespace(__class__=1) %}{{ n }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages[0].image.tofile('/nowhere/at/all') }}",
        "{{ 1 // 0 }}",
        "{{ undefined_thing.attribute }}",
    ],
)
def test_templates_reach_nothing_but_their_data(source):
    """Jinja gives nothing for some of it, and refuses the rest."""
    try:
        rendered = ChatTemplate({"default": source}, {}).render([{**USER, "image": np.zeros(3)}])
    except RequestError as error:
        rendered = "" if "refuses" in str(error) else str(error)
    assert rendered == ""


def test_what_is_no_plain_data_is_named_and_no_more():
    class Loud(str):
        def shout(self):
            return "!"

    template = ChatTemplate(
        {"default": "{{ messages[0].image }} {{ messages[0].number }} {{ messages[0].text.shout }}"}, {}
    )
    assert (
        template.render([{"role": "user", "image": np.zeros(2), "number": np.int64(3), "text": Loud("a")}])
        == "<ndarray> 3 "
    )


def test_json_is_written_as_models_have_read_it():
    value = {"b": "<é & ü>", "a": [1, 2.5, None]}
    template = ChatTemplate({"default": "{{ messages[0].value|tojson }}|{{ messages[0].value|tojson(indent=2) }}"}, {})
    expected = json.dumps(value, ensure_ascii=False) + "|" + json.dumps(value, ensure_ascii=False, indent=2)
    assert template.render([{"role": "user", "value": value}]) == expected


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        ("hello", {}),
        (["hello"], {}),
        ([{"content": "hello"}], {}),
        ([USER], {"tools": [print]}),
        ([USER], {"tools": ["weather"]}),
        ([USER], {"documents": ["text"]}),
        ([USER], {"continue_final_message": True, "add_generation_prompt": True}),
        ([{"role": "user"}], {"continue_final_message": True}),
        ([{"role": "user", "content": [{"type": "image"}]}], {"continue_final_message": True}),
    ],
)
def test_what_is_no_chat_is_refused(messages, options):
    with pytest.raises(RequestError):
        ChatTemplate({"default": "{{ messages[0].content }}"}, {}).render(messages, **options)


def test_a_template_that_is_not_valid_is_said_to_be_the_bundles():
    with pytest.raises(DamagedError, match="chat template"):
        ChatTemplate({"default": "{% if %}"}, {}).render([USER])


def test_without_jinja_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"palmtop\[generate\]"):
        ChatTemplate({"default": "never compiled before {{ 1 }}"}, {}).render([USER])
