"""POST /v1/responses, and GET and DELETE of the responses that are kept: OpenAI's Responses API."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from openai.types import responses as types
from typing_extensions import TypedDict

from serve.http.answering import Answering
from serve.http.bodies import as_json, parse
from serve.http.errors import ApiError, invalid_request
from serve.http.guard import given_key
from serve.http.renamed import fields_renamed
from serve.http.routes.route import Route
from serve.http.stateful.body import NAMES, ResponsesBody
from serve.http.stateful.events import events
from serve.http.stateful.form import ResponseForm
from serve.http.stateful.items import Turns, conversation, said
from serve.http.stateful.store import Store, Stored
from serve.wire import Delta


class Deleted(TypedDict):
    """The answer to a deletion."""

    id: str
    object: Literal["response"]
    deleted: bool


def routes(answering: Answering) -> list[Route]:
    """Return the routes of responses."""
    store = answering.store

    async def create(request: Request) -> Response:
        body = await parse(request, ResponsesBody)
        answering.check_model(body.model)
        owner = owner_of(request)
        form = ResponseForm(body, stored=_is_stored(body, store))
        turns = conversation(await _before(body, store, owner), body.input)

        async def keep(response: types.Response, answer: Delta) -> None:
            if store is not None and form.stored:
                kept = response.to_dict(mode="json")
                stored = Stored(owner=owner, response=kept, turns=[*turns, said(answer)])
                await store.put(form.id, stored)

        with fields_renamed(NAMES):
            chat = body.chat(turns)
            [asked] = chat.generate_requests(form.id, answering.adapter(body.model))
            if body.stream:
                return await answering.stream(asked, partial(events, form, keep))
            answer = await answering.whole(asked)
        response = form.finished(answer)
        await keep(response, answer)
        return as_json(response)

    async def read(request: Request, response_id: str) -> Response:
        if store is None or (found := await store.get(response_id, owner_of(request))) is None:
            raise _not_found()
        return JSONResponse(found.response)

    async def delete(request: Request, response_id: str) -> Response:
        if store is None or not await store.delete(response_id, owner_of(request)):
            raise _not_found()
        return JSONResponse(Deleted(id=response_id, object="response", deleted=True))

    return [
        Route("/v1/responses", create, "POST", ResponsesBody, types.Response),
        Route("/v1/responses/{response_id}", read, answer=types.Response),
        Route("/v1/responses/{response_id}", delete, "DELETE", answer=Deleted),
    ]


def owner_of(request: Request) -> str:
    """Return whose responses a request may see: those that were made with the same key."""
    return hashlib.sha256((given_key(request.headers) or "").encode()).hexdigest()


def _is_stored(body: ResponsesBody, store: Store | None) -> bool:
    """Tell whether a response is kept; OpenAI's API keeps those that do not say otherwise.

    Raises:
        ApiError: when it is to be kept, and nothing is kept here.
    """
    if store is None and body.store:
        raise invalid_request("store: no responses are kept here (serve.store_bytes=0)", "store")
    return store is not None and body.store is not False


async def _before(body: ResponsesBody, store: Store | None, owner: str) -> Turns:
    """Return the conversation that a response goes on with."""
    previous = body.previous_response_id
    if previous is None:
        return []
    found = None if store is None else await store.get(previous, owner)
    if found is None:
        raise ApiError(
            400,
            "previous_response_id: no such response is kept here (any more)",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return found.turns


def _not_found() -> ApiError:
    return ApiError(404, "no such response is kept here (any more)", param="response_id")
