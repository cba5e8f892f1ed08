from __future__ import annotations

import json

import pytest
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase as ChatParams,
)
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsStreaming as ChatStreamingParams,
)
from openai.types.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsStreaming,
)

from llamahome.requests import Grammar, RequestError, SamplingParams
from serve.http.bodies import checked
from serve.http.errors import ApiError
from serve.http.protocol import ChatRequest, CompletionRequest

USER = {"role": "user", "content": "Hi"}


def chat(**fields) -> ChatRequest:
    body = {"model": "m", "messages": [USER], **fields}
    return checked(ChatRequest, json.dumps(body))


def completion(**fields) -> CompletionRequest:
    body = {"model": "m", "prompt": "Hi", **fields}
    return checked(CompletionRequest, json.dumps(body))


def params_of(body: ChatRequest | CompletionRequest) -> SamplingParams:
    return body.generate_requests("id", None)[0].params


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ChatRequest, (ChatParams, ChatStreamingParams)),
        (CompletionRequest, (CompletionCreateParamsBase, CompletionCreateParamsStreaming)),
    ],
    ids=["chat", "completion"],
)
def test_every_field_of_the_openai_client_is_known(ours, theirs):
    sent = set().union(*(params.__annotations__ for params in theirs))
    assert sent - set(ours.model_fields) == set()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("reasoning_effort", "high"),
        ("modalities", ["audio"]),
        ("store", True),
        ("audio", {"voice": "x"}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(field, value):
    with pytest.raises(ApiError) as refused:
        chat(**{field: value})
    error = refused.value
    assert (error.status, error.param, error.code) == (400, field, "unsupported")
    assert field in error.message


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [None, 1]),
        ("logprobs", [None, False]),
        ("tools", [None, []]),
        ("tool_choice", [None, "none", "auto"]),
        ("response_format", [None, {"type": "text"}]),
        ("logit_bias", [None, {}]),
        ("presence_penalty", [None, 0, 0.0]),
        ("store", [None, False]),
        ("metadata", [None, {"team": "a"}]),
        ("user", [None, "u1"]),
        ("stream_options", [None, {"include_usage": True}]),
    ],
)
def test_values_that_ask_for_nothing_special_are_accepted(field, values):
    for value in values:
        chat(**{field: value})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"n": True}, "n"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{**USER, "colour": 1}]}, "messages.0.colour"),
        ({"messages": [{**USER, "name": "Ada"}]}, "messages.0.name"),
        ({"chat_template_kwargs": ["thinking"]}, "chat_template_kwargs"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_wrong_body_names_the_field(fields, param):
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert refused.value.param == param


def test_the_value_of_a_wrong_field_is_not_repeated():
    with pytest.raises(ApiError) as refused:
        chat(messages=[{"role": "user", "content": ["secret"]}])
    assert "secret" not in refused.value.message


def test_messages_reach_the_template_as_plain_text():
    request = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
            {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None},
        ]
    ).generate_requests("id", None)[0]
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "aa"},
        {"role": "assistant", "content": "b"},
    ]


def test_what_the_client_left_out_is_listed():
    defaulted = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
    asked = chat(temperature=1.0, top_k=-1).generate_requests("id", None)[0]
    assert asked.left_out & {*defaulted, "max_tokens"} == defaulted - {"temperature", "top_k"} | {
        "max_tokens"
    }
    for limit in ("max_tokens", "max_completion_tokens"):
        request = chat(**{limit: 5}).generate_requests("id", None)[0]
        assert "max_tokens" not in request.left_out
    plain = completion(min_p=0.0).generate_requests("id", None)[0]
    assert plain.left_out & {*defaulted, "max_tokens"} == defaulted - {"min_p"}


def test_the_templates_own_options_reach_it():
    request = chat(chat_template_kwargs={"enable_thinking": False}).generate_requests("id", None)[0]
    assert request.template_options == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({}, (True, False)),
        ({"add_generation_prompt": False}, (False, False)),
        ({"continue_final_message": True}, (False, True)),
        ({"continue_final_message": True, "add_generation_prompt": False}, (False, True)),
        ({"continue_final_message": False, "add_generation_prompt": True}, (True, False)),
    ],
)
def test_the_end_of_a_chats_prompt(fields, ending):
    answer = {"role": "assistant", "content": "Well,"}
    request = chat(messages=[USER, answer], **fields).generate_requests("id", None)[0]
    assert (request.add_generation_prompt, request.continue_final_message) == ending


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"add_generation_prompt": True}, "it excludes add_generation_prompt: true"),
        ({}, "the last message must be the assistant's"),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(fields, words):
    with pytest.raises(ApiError) as refused:
        chat(continue_final_message=True, **fields)
    error = refused.value
    assert error.param == "continue_final_message"
    assert words in error.message


def test_sampling_and_limits_become_a_request():
    params = params_of(chat(max_completion_tokens=7, seed=3, stop="x"))
    assert (params.max_tokens, params.seed, params.stop) == (7, 3, ("x",))
    assert (params.temperature, params.top_p) == (1.0, 1.0)
    assert params_of(chat(temperature=0, top_p=0.5)).temperature == 0
    assert params_of(chat()).max_tokens is None
    assert params_of(completion()).max_tokens == 16


@pytest.mark.parametrize("body", [chat, completion])
def test_every_sampling_field_becomes_part_of_the_request(body):
    fields = {
        "min_tokens": 2,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "ignore_eos": True,
        "kv_budget": 128,
        "kv_policy": "h2o",
        "priority": -1,
    }
    params = params_of(body(**fields, logit_bias={"7": -100}, stop_token_ids=[3]))
    assert {name: getattr(params, name) for name in fields} == fields
    assert (params.logit_bias, params.stop_token_ids) == ({7: -100.0}, (3,))
    assert params_of(body(top_k=-1)).top_k == 0
    plain = SamplingParams(max_tokens=params.max_tokens, temperature=1.0)
    assert params_of(body()) == plain


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 4}, 4),
    ],
)
def test_a_chats_logprobs_are_a_switch_and_a_number(fields, logprobs):
    assert params_of(chat(**fields)).logprobs == logprobs


def test_a_completions_logprobs_are_a_number():
    (request,) = completion(logprobs=3, echo=True).generate_requests("id", None)
    assert (request.params.logprobs, request.params.prompt_logprobs, request.echo) == (3, 3, True)


def test_choices_differ_by_id_and_seed():
    requests = completion(prompt=["a", "b"], n=2, seed=7).generate_requests("id", None)
    assert [r.request_id for r in requests] == ["id-0", "id-1", "id-2", "id-3"]
    assert [r.prompt for r in requests] == ["a", "a", "b", "b"]
    assert [r.params.seed for r in requests] == [7, 8, 7, 8]
    largest = chat(n=2, seed=2**63 - 1).generate_requests("id", None)
    assert [r.params.seed for r in largest] == [2**63 - 1, -(2**63)]
    assert [r.params.seed for r in chat(n=2).generate_requests("id", None)] == [None, None]


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            ("json", '{"type": "object"}', "response_format"),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "integer"}, "strict": True},
                }
            },
            ("json", '{"type": "integer"}', "response_format"),
        ),
        ({"guided_json": {"type": "null"}}, ("json", '{"type": "null"}', "guided_json")),
        ({"guided_json": '{"type": "null"}'}, ("json", '{"type": "null"}', "guided_json")),
        ({"guided_regex": "a+"}, ("regex", "a+", "guided_regex")),
        ({"guided_choice": ["a", "b"]}, ("choice", '["a", "b"]', "guided_choice")),
        (
            {"structured_outputs": {"regex": "a+"}},
            ("regex", "a+", "structured_outputs.regex"),
        ),
        (
            {"structured_outputs": {"json": {"type": "null"}}},
            ("json", '{"type": "null"}', "structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            ("json", '{"type": "object"}', "structured_outputs.json_object"),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("body", [chat, completion])
def test_what_an_answer_must_look_like(body, fields, grammar):
    found = params_of(body(**fields)).grammar
    assert found == (None if grammar is None else Grammar(*grammar))


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"temperature": -1.0}, "temperature", "-1.0"),
        ({"top_p": 0.0}, "top_p", "0.0"),
        ({"seed": 2**70}, "seed", "64 bits"),
    ],
)
@pytest.mark.parametrize("body", [chat, completion])
def test_a_value_out_of_range_is_refused_by_field(body, fields, field, words):
    with pytest.raises(RequestError, match=words) as refused:
        params_of(body(**fields))
    assert refused.value.field == field


def test_two_grammars_are_refused():
    body = chat(guided_regex="a", response_format={"type": "json_object"})
    with pytest.raises(ApiError, match="response_format already says") as refused:
        body.generate_requests("id", None)
    assert (refused.value.status, refused.value.param) == (400, "guided_regex")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", ["Hi"]),
        (["Hi"], ["Hi"]),
        (["Hi", "Ho"], ["Hi", "Ho"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2]], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
    ids=["text", "list of text", "texts", "token ids", "list of token ids", "lists"],
)
def test_prompts_in_each_of_their_forms(prompt, expected):
    requests = completion(prompt=prompt).generate_requests("id", None)
    assert [request.prompt for request in requests] == expected


@pytest.mark.parametrize("prompt", [[[1, "a"]], {"a": 1}, None, ["a"] * 129])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(ApiError) as refused:
        completion(prompt=prompt)
    assert (refused.value.param or "").startswith("prompt")


def test_best_of_must_be_n():
    assert completion(best_of=2, n=2).choices_per_prompt == 2
    with pytest.raises(ApiError) as refused:
        completion(best_of=3)
    assert refused.value.param == "best_of"
