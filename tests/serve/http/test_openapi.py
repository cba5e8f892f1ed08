"""Requests that schemathesis makes from the OpenAPI document: no answer breaks what it says."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Sequence

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from llamahome.requests import Token
from serve.http.api import build_app
from serve.http.settings import HttpSettings
from serve.http.stateful.store import MemoryStore
from serve.wire import (
    Delta,
    DetokenizeRequest,
    EmbedRequest,
    ReplicaStats,
    Request,
    ScoreRequest,
    Tokenized,
    TokenizeRequest,
)
from tests.serve.conftest import ANSWER, replica_stats, usage

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 4
TOKEN = Token(id=1, data=b"x", offset=0, logprob=-1.0)


class EveryKind:
    """A backend that answers every kind of request at once."""

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        match request:
            case TokenizeRequest():
                found = Tokenized(ids=(1, 2), pieces=("a", "b"), max_length=64)
                yield Delta(text="", token_count=0, tokenized=found, finish_reason="stop")
            case DetokenizeRequest():
                yield Delta(text="ab", token_count=0, finish_reason="stop")
            case EmbedRequest():
                vector = struct.pack("<2f", 0.6, 0.8)
                yield Delta(
                    text="",
                    token_count=0,
                    embedding=vector,
                    finish_reason="stop",
                    usage=usage(2, 0),
                )
            case ScoreRequest():
                yield Delta(
                    text="",
                    token_count=0,
                    tokens=(TOKEN,),
                    finish_reason="stop",
                    usage=usage(2, 0),
                )
            case _:
                for delta in ANSWER:
                    yield delta

    async def replicas(self) -> Sequence[ReplicaStats]:
        return [replica_stats(max_length=64)]


APP = build_app(
    EveryKind(),
    HttpSettings(
        model_id="tiny", created=1, request_timeout_s=60.0, max_body_bytes=2**20, docs=True
    ),
    store=MemoryStore(100_000, 60),
)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
RESULTS = list(SCHEMA.get_all_operations())
OPERATIONS = [result.ok() for result in RESULTS if isinstance(result, Ok)]


def test_every_path_has_an_operation():
    assert len(OPERATIONS) == len(RESULTS)
    assert {operation.label for operation in OPERATIONS} >= {
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "DELETE /v1/responses/{response_id}",
        "POST /v1/messages",
        "HEAD /v1/models",
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_answers_are_as_described(operation):
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def holds(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"  # any other name is a 404, and the rest is not read
        case.call_and_validate(checks=CHECKS)

    holds()
