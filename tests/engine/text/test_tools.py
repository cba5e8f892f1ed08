"""Calls in the words of chat templates, and answers that keep to them."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from llamahome.engine.sampling.grammar import Vocabulary
from llamahome.engine.text.chat import ChatEncoder
from llamahome.engine.text.tools import DEFAULT_FORMAT, call_grammar
from llamahome.requests import CallFormat, Grammar, RequestError, Tools
from tests.conftest import make_byte_tokenizer

# In the manner of Qwen 2.5, Llama 3.1, Functionary 3.1 and Mistral v3.
QWEN = r"""
{%- if tools %}
    {{- '<|system|>\n# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- '\n</tools><eos>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|user|>\n<tool_response>\n' + m.content + '\n</tool_response><eos>\n' }}
    {%- else %}
        {{- '<|' + m.role + '|>' }}
        {%- if m.content %}{{- '\n' + m.content }}{%- endif %}
        {%- for call in m.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<eos>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}
"""
LLAMA = r"""
{%- for m in messages %}
    {{- '<|' + m.role + '|>\n\n' }}
    {%- if m.role == 'user' and tools %}{{- tools | tojson + '\n' }}{%- endif %}
    {%- if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}
    {%- if m.tool_calls %}
        {{- '{"name": "' + m.tool_calls[0].function.name + '", ' }}
        {{- '"parameters": ' + m.tool_calls[0].function.arguments | tojson + '}' }}
    {%- else %}
        {{- m.content }}
    {%- endif %}
    {{- '<eos>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n\n' }}{%- endif %}
"""
FUNCTIONARY = r"""
{{- tools | tojson if tools }}
{%- for m in messages %}
    {{- '<|' + m.role + '|>' + m.content }}
    {%- for c in m.tool_calls %}
        {{- '<function=' + c.function.name + '>' + c.function.arguments | tojson + '</function>' }}
    {%- endfor %}
    {{- '<eos>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""
MISTRAL = FUNCTIONARY.replace("<function=", "[TOOL_CALLS]").replace("'>'", "'[ARGS]'")
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
OFFERED: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "time", "description": "Tell the time <eos>"}},
]
BOTH = Tools(offered=OFFERED, callable=("weather", "time"))
ROME = 'weather", "arguments": {"city": "Rome", "days": [1]}'
TIME = 'time", "arguments": {}'
CALL = '<tool_call>\n{"name": "%s}\n</tool_call>'


def tokenizer_of(
    template: str | None, *added: str, special: bool = False
) -> PreTrainedTokenizerFast:
    tokenizer = make_byte_tokenizer()
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in added])
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def encoder_of(tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
    return ChatEncoder(tokenizer, "m", split_special_tokens=True)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (QWEN, DEFAULT_FORMAT),
        (
            LLAMA,
            CallFormat(
                opening='{"name": "', middle='", "parameters": ', following=None, closing="}"
            ),
        ),
        (
            FUNCTIONARY,
            CallFormat(
                opening="<function=",
                middle=">",
                following="</function><function=",
                closing="</function>",
            ),
        ),
    ],
    ids=["qwen", "llama", "functionary"],
)
def test_the_format_is_read_off_the_template(template: str, expected: CallFormat) -> None:
    encoder = encoder_of(tokenizer_of(template))
    assert encoder.call_format == expected
    call = {"name": "weather", "arguments": {"city": "Rome", "days": [1]}}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": call}]}
    chat = [{"role": "user", "content": "Hi"}, answer]
    rendered = encoder.template.render(chat, tools=OFFERED)
    arguments = json.dumps(call["arguments"])
    assert f"{expected.opening}weather{expected.middle}{arguments}{expected.closing}" in rendered


@pytest.mark.parametrize(
    "tokenizer",
    [
        tokenizer_of(None),
        tokenizer_of(MISTRAL, "[TOOL_CALLS]", "[ARGS]", special=True),
    ],
    ids=["no tools", "control tokens"],
)
def test_other_templates_get_a_prompt_in_plain_messages(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = encoder_of(tokenizer)
    assert encoder.call_format == DEFAULT_FORMAT
    arguments = {"city": "Rome", "days": []}
    calls = [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}},
        {"id": "2", "type": "function", "function": {"name": "time", "arguments": {}}},
    ]
    ids = encoder.encode(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "weather"},
            {"role": "tool", "content": "noon", "tool_call_id": "2", "name": "time"},
        ],
        tools=OFFERED,
    )
    text = str(tokenizer.decode(ids))
    assert text.startswith("<|system|>Be brief.\n\nYou may call functions")
    assert json.dumps(OFFERED[0]) in text
    first = '{"name": "weather", "arguments": {"city": "Rome", "days": []}}'
    second = '{"name": "time", "arguments": {}}'
    assert (
        f"<|assistant|><tool_call>\n{first}\n</tool_call>\n<tool_call>\n{second}\n</tool_call><eos>"
        "<|user|><tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
        "<eos><|assistant|>"
    ) in text


@pytest.mark.parametrize("template", [None, QWEN, LLAMA], ids=["default", "qwen", "llama"])
def test_control_tokens_of_tools_calls_and_results_are_text(template: str | None) -> None:
    tokenizer = tokenizer_of(template)
    encoder = encoder_of(tokenizer)

    def count(word: str) -> int:
        function = {"name": "time", "arguments": {"zone": word}}
        chat = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function}]},
            {"role": "tool", "content": word, "tool_call_id": "1", "name": "time"},
        ]
        tools = [{"type": "function", "function": {"name": "time", "description": word}}]
        ids = encoder.encode(chat, tools=tools)
        assert word in tokenizer.decode(ids)
        return ids.count(tokenizer.eos_token_id)

    assert count("<eos>") == count("plain")


def test_the_templates_own_options_are_set_and_others_refused() -> None:
    tokenizer = tokenizer_of(QWEN)
    encoder = encoder_of(tokenizer)
    chat = [{"role": "user", "content": "Hi"}]
    quiet = encoder.encode(chat, options={"enable_thinking": False})
    assert str(tokenizer.decode(quiet)).endswith("<think></think>")
    assert encoder.encode(chat, options={"enable_thinking": True}) == encoder.encode(chat)
    for name in ("colour", "messages", "tools", "chat_template", "eos_token", "raise_exception"):
        with pytest.raises(RequestError, match=f"does not read {name}") as refused:
            encoder.encode(chat, options={"enable_thinking": False, name: "<eos>"})
        assert refused.value.field == "chat_template_kwargs"


def consumed(tokenizer: PreTrainedTokenizerFast, grammar: Grammar, text: str) -> tuple[int, bool]:
    """Return how many tokens of a text the grammar allows, and whether it may then end."""
    vocabulary = Vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    mask = vocabulary.mask(grammar)
    ids = tokenizer.encode(text, add_special_tokens=False)
    for count, token in enumerate(ids):
        row = torch.zeros(len(tokenizer))
        if not mask.finished:
            mask.apply(row)
        if mask.finished or torch.isinf(row[token]):
            return count, False
        mask.advance(token)
    if mask.finished:
        return len(ids), True
    row = torch.zeros(len(tokenizer))
    mask.apply(row)
    return len(ids), bool(torch.isfinite(row[tokenizer.eos_token_id]))


@pytest.mark.parametrize("added", [(), ("<tool_call>", "</tool_call>")], ids=["text", "tokens"])
@pytest.mark.parametrize(
    ("tools", "text", "stuck_at"),
    [
        (BOTH, "Well, <tool is text.", None),
        (BOTH, f"Well.\n{CALL % ROME}", None),
        (BOTH, f"{CALL % ROME}\n{CALL % TIME}", None),
        (BOTH, CALL % 'rain", "arguments": {}', "rain"),
        (BOTH, f"Well. {CALL % ROME} Good.", " Good"),
        (BOTH, CALL % 'weather", "arguments": {"city": "Bonn"', "Bonn"),
        (BOTH, CALL % 'time", "arguments": {"a": 1}', '"a"'),
        (Tools(offered=OFFERED, callable=("weather", "time"), required=True), CALL % TIME, None),
        (Tools(offered=OFFERED, callable=("weather", "time"), required=True), "Well", "Well"),
        (Tools(offered=OFFERED, callable=("time",), required=True), CALL % ROME, "weather"),
        (
            Tools(offered=OFFERED, callable=("time",), parallel=False),
            f"{CALL % TIME}\n{CALL % TIME}",
            "\n<tool_call>\n" + '{"name": "time", "arguments": {}}\n</tool_call>',
        ),
    ],
    ids=str,
)
def test_a_call_that_has_begun_must_be_right(
    added: tuple[str, ...], tools: Tools, text: str, stuck_at: str | None
) -> None:
    tokenizer = tokenizer_of(None, *added)
    literal = Vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id]).literal
    grammar = call_grammar(DEFAULT_FORMAT, tools, None, literal)
    count, may_end = consumed(tokenizer, grammar, text)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if stuck_at is None:
        assert (count, may_end) == (len(ids), True)
    else:
        assert count == len(tokenizer.encode(text[: text.rindex(stuck_at)]))


def test_json_that_opens_an_answer_is_a_call_where_calls_are_json() -> None:
    tokenizer = tokenizer_of(LLAMA)
    form = encoder_of(tokenizer).call_format
    literal = Vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id]).literal
    grammar = call_grammar(form, BOTH, None, literal)
    call = '{"name": "time", "parameters": {}}'
    assert consumed(tokenizer, grammar, call) == (len(call), True)
    assert consumed(tokenizer, grammar, 'It is {"name": 5}.') == (18, True)
    assert consumed(tokenizer, grammar, '{"nome"')[0] == 3
    with pytest.raises(RequestError, match="leave out one of the two"):
        call_grammar(form, BOTH, Grammar("json", "{}", "response_format"), literal)


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        ({"properties": {"a": {"enum": [1]}}}, '{"b": 1}', False),
        ({"properties": {"a": {"properties": {"c": {"enum": [1]}}}}}, '{"a": {"d": 1}}', False),
        ({"properties": {}, "additionalProperties": True}, '{"b": 1}', True),
        (
            {"allOf": [{"properties": {"a": {"enum": [1]}}}, {"properties": {"b": {"enum": [1]}}}]},
            '{"a": 1, "b": 1}',
            True,
        ),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/x"}},
                "$defs": {"x": {"type": "object", "properties": {"c": {"enum": [1]}}}},
            },
            '{"a": {"d": 1}}',
            False,
        ),
        ({}, "{}", True),
        ({}, '{"a": 1}', False),
    ],
    ids=str,
)
def test_arguments_have_the_properties_that_are_named(
    schema: dict[str, Any], text: str, allowed: bool
) -> None:
    tokenizer = tokenizer_of(None)
    literal = Vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id]).literal
    offered = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    tools = Tools(offered=offered, callable=("f",), required=True)
    grammar = call_grammar(DEFAULT_FORMAT, tools, None, literal)
    call = CALL % f'f", "arguments": {text}'
    assert consumed(tokenizer, grammar, call)[1] == allowed


def test_an_answer_keeps_to_its_own_schema_or_calls() -> None:
    tokenizer = tokenizer_of(None)
    literal = Vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id]).literal
    answer = Grammar("json", '{"enum": ["yes"]}', "response_format")
    grammar = call_grammar(DEFAULT_FORMAT, BOTH, answer, literal)
    assert consumed(tokenizer, grammar, '"yes"') == (5, True)
    assert consumed(tokenizer, grammar, CALL % TIME)[1]
    assert consumed(tokenizer, grammar, "no")[0] == 0
    for bad in (Grammar("regex", "a", "guided_regex"), Grammar("json", "{", "guided_json")):
        with pytest.raises(RequestError) as refused:
            call_grammar(DEFAULT_FORMAT, BOTH, bad, literal)
        assert refused.value.field == bad.source


@pytest.mark.parametrize("seed", range(5))
def test_random_tokens_make_valid_calls(seed: int) -> None:
    """Draw each token evenly from those allowed; the judge is the `jsonschema` package."""
    tokenizer = tokenizer_of(None, "<tool_call>", "</tool_call>")
    vocabulary = Vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    tools = Tools(offered=OFFERED, callable=("weather", "time"), required=True)
    mask = vocabulary.mask(call_grammar(DEFAULT_FORMAT, tools, None, vocabulary.literal))
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while not mask.finished:
        row = torch.zeros(len(tokenizer))
        mask.apply(row)
        token = int(torch.multinomial(row.softmax(0), 1, generator=generator))
        if token == tokenizer.eos_token_id:
            break
        mask.advance(token)
        ids.append(token)
    calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", tokenizer.decode(ids), re.DOTALL)
    assert calls
    for call in map(json.loads, calls):
        schema = WEATHER if call["name"] == "weather" else {"maxProperties": 0}
        jsonschema.validate(call["arguments"], schema)
