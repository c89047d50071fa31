"""Chat templates render as Transformers' ``apply_chat_template`` does, byte for byte and id for id."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from quire.text.chat_template import ChatTemplate, load_chat_template
from quire.text.protection import TemplateError
from quire.text.tokenizer import Tokenizer, load_tokenizer
from quire.weights.errors import CheckpointError
from tests.text.corpus import HARD_STRINGS
from tests.text.templates import TEMPLATES

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather; it's 'live'.\nSlow & <exact>.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Zürich", "東京"]},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello, who are you? 123"}],
    "system": [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  Hi  "}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c\n\n"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "日本語 👍 é"},
    ],
    "system and turns": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
    "assistant last": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is "}],
    "reasoning": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "because"},
        {"role": "user", "content": "c", "name": None},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sun": true}', "tool_call_id": "1"},
    ],
    "names only": [{"role": "system", "content": "only this"}],
}


@cache
def loaded(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture
def smollm2(smollm2_path: Path) -> Tokenizer:
    return loaded(smollm2_path)


@cache
def peer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._library, **tokenizer.facts.named)


def compare(tokenizer: Tokenizer, template: str, messages: list[dict[str, Any]], **options: Any) -> bool:
    """Both give the same text and ids, or both refuse (False)."""
    theirs = peer(tokenizer)
    own, options = options, {"chat_template": template} | options
    ours = ChatTemplate(tokenizer, {"default": template})
    try:
        text = theirs.apply_chat_template(messages, tokenize=False, **options)
    except Exception:
        with pytest.raises(TemplateError):
            ours.render(messages, **own)
        return False
    rendered = ours.render(messages, **own)
    assert rendered.text == text
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]
    if not rendered.literals:
        assert tokenizer.encode_template(rendered) == ids
    return True


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_public_templates_render_as_in_transformers(smollm2: Tokenizer, name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    for prompt, tools in itertools.product((True, False), (None, [WEATHER])):
        compare(smollm2, TEMPLATES[name], messages, add_generation_prompt=prompt, tools=tools)


@pytest.mark.parametrize("name", TEMPLATES)
def test_most_conversations_suit_each_template(smollm2: Tokenizer, name: str) -> None:
    """That both refuse is right only now and then."""
    fine = sum(compare(smollm2, TEMPLATES[name], m, add_generation_prompt=True) for m in CONVERSATIONS.values())
    assert fine >= 3


@pytest.mark.parametrize("model", ["smollm2", "qwen"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_models_own_templates_render_as_in_transformers(
    model: str, conversation: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = loaded(request.getfixturevalue(f"{model}_path"))
    template = tokenizer.facts.templates["default"]
    for prompt, tools in itertools.product((True, False), (None, [WEATHER])):
        compare(tokenizer, template, CONVERSATIONS[conversation], add_generation_prompt=prompt, tools=tools)


def test_hard_strings_get_the_same_ids(smollm2: Tokenizer) -> None:
    assert smollm2.special_pattern is not None
    for text in HARD_STRINGS:
        if not smollm2.special_pattern.search(text):
            compare(smollm2, TEMPLATES["chatml"], [{"role": "user", "content": text}], add_generation_prompt=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_final_message_is_continued_as_in_transformers(smollm2: Tokenizer, name: str) -> None:
    for content in ("The answer is", "The answer is ", "x\n\n", "a b"):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
        compare(smollm2, TEMPLATES[name], messages, add_generation_prompt=False, continue_final_message=True)


def test_variables_reach_the_template(smollm2: Tokenizer) -> None:
    messages = CONVERSATIONS["one"]
    for value in (True, False):
        assert compare(smollm2, TEMPLATES["qwen3"], messages, add_generation_prompt=True, enable_thinking=value)
    assert compare(smollm2, TEMPLATES["llama3.1 tools"], messages, date_string="1 May", add_generation_prompt=True)
    assert compare(
        smollm2, "{{ bos_token }}{{ documents }}{{ tools }}{{ x }}", messages, bos_token="B", x=[1, None, {"a": 2.5}]
    )


def test_tools_choose_the_template_named_for_them(smollm2: Tokenizer) -> None:
    both = ChatTemplate(smollm2, {"default": "plain", "tool_use": "tools"})
    assert both.render(CONVERSATIONS["one"]).text == "plain"
    assert both.render(CONVERSATIONS["one"], tools=[WEATHER]).text == "tools"
    with pytest.raises(TemplateError, match="named chat templates"):
        ChatTemplate(smollm2, {"rag": "x"}).render(CONVERSATIONS["one"])


PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]


def test_parts_are_joined_for_templates_that_want_text(smollm2: Tokenizer) -> None:
    for name in ("chatml", "llama3", "mistral", "phi3", "deepseek"):
        whole, parts = (
            ChatTemplate(smollm2, {"default": TEMPLATES[name]}).render([{"role": "user", "content": content}]).text
            for content in ("one\ntwo", PARTS)
        )
        assert parts == whole


def test_parts_are_passed_on_to_templates_that_loop_over_them(smollm2: Tokenizer) -> None:
    assert compare(smollm2, TEMPLATES["gemma3"], [{"role": "user", "content": PARTS}], add_generation_prompt=True)
    macro = (
        "{% macro show(content) %}{% for p in content %}<{{ p.text }}>{% endfor %}{% endmacro %}"
        "{{ show(messages[0].content) }}"
    )
    assigned = "{% set c = messages[0]['content'] | list %}{% for p in c %}<{{ p['text'] }}>{% endfor %}"
    for template in (macro, assigned):
        assert (
            ChatTemplate(smollm2, {"default": template}).render([{"role": "user", "content": PARTS}]).text
            == "<one><two>"
        )


@pytest.mark.parametrize(
    ("messages", "options", "why"),
    [
        ([], {}, "must not be empty"),
        (["x"], {}, "must be an object"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "takes only text"),
        ([{"role": "user", "content": object()}], {}, "type object"),
        (
            [{"role": "user", "content": "x"}],
            {"continue_final_message": True},
            "needs add_generation_prompt to be false",
        ),
        (
            [{"role": "user"}],
            {"continue_final_message": True, "add_generation_prompt": False},
            "last message with text",
        ),
        ([{"role": "user", "content": "x"}], {"messages_": 1, "tools_": 1, "chat": 1}, None),
        ([{"role": "user"}], {}, "'dict object' has no attribute 'content'"),
    ],
)
def test_wrong_messages_end_in_one_sentence(
    smollm2: Tokenizer, messages: list[Any], options: dict[str, Any], why: str | None
) -> None:
    template = ChatTemplate(smollm2, {"default": TEMPLATES["chatml"]})
    if why is None:
        template.render(messages, **options)
        return
    with pytest.raises(TemplateError, match=why) as caught:
        template.render(messages, **options)
    assert str(caught.value).endswith(".")


def test_what_the_template_says_reaches_the_caller(smollm2: Tokenizer) -> None:
    template = ChatTemplate(smollm2, {"default": TEMPLATES["mistral"]})
    with pytest.raises(TemplateError, match="refuses these messages: Conversation roles must alternate"):
        template.render([{"role": "assistant", "content": "x"}])


def test_deeply_nested_messages_are_refused(smollm2: Tokenizer) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(TemplateError, match="nested too deeply"):
        ChatTemplate(smollm2, {"default": "x"}).render([{"role": "user", "content": "x", "extra": deep}])


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ 'x' | nofilter }}", "{% endfor %}", "{{ " + "(" * 5000 + ")" * 5000 + " }}"]
)
def test_what_is_no_template_is_refused_at_the_start(smollm2: Tokenizer, source: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ChatTemplate(smollm2, {"default": source})
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_the_models_template_can_be_replaced(smollm2: Tokenizer, gemma_path: Path) -> None:
    replaced = load_chat_template(smollm2, "{{ messages[0].content }}")
    assert replaced is not None and replaced.render(CONVERSATIONS["one"]).text == "Hello, who are you? 123"
    assert load_chat_template(loaded(gemma_path)) is None
