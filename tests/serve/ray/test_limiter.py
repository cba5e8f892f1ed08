from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from serve.http.errors import ApiError
from serve.ray.limiter import KeyLimits, RemoteLimiter


@dataclass
class Method:
    """A method of a Serve handle: runs on `limits`, or fails as Ray does."""

    name: str
    limits: KeyLimits
    error: Exception | None
    given: list[Any]

    def remote(self, *arguments: Any) -> Any:
        if self.name == "give":
            self.given.append(arguments)

        async def call() -> Any:
            if self.error is not None:
                raise self.error
            return await getattr(self.limits, self.name)(*arguments)

        return call() if self.name == "take" else None


@dataclass
class Handle:
    limits: KeyLimits = field(default_factory=KeyLimits)
    error: Exception | None = None
    given: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Method:
        return Method(name, self.limits, self.error, self.given)


async def test_two_ingresses_share_one_bucket():
    handle = Handle()
    first, second = RemoteLimiter(handle), RemoteLimiter(handle)
    assert (await first.take("k", "requests", 2, 1)).remaining == 1
    assert (await second.take("k", "requests", 2, 1)).remaining == 0
    assert not (await first.take("k", "requests", 2, 1)).ok


async def test_what_was_not_used_is_given_back_without_waiting():
    handle = Handle()
    RemoteLimiter(handle).give("k", "tokens", 100, 7)
    assert handle.given == [("k", "tokens", 100, 7)]
    limits = KeyLimits()
    await limits.take("k", "tokens", 100, 50)
    await limits.give("k", "tokens", 100, 40)
    assert (await limits.take("k", "tokens", 100, 0)).remaining == 90


@pytest.mark.parametrize("error", [ActorDiedError(), DeploymentUnavailableError("KeyLimits")])
async def test_no_limit_is_passed_over_while_nobody_counts(error):
    with pytest.raises(ApiError) as caught:
        await RemoteLimiter(Handle(error=error)).take("k", "requests", 1, 1)
    assert (caught.value.status, caught.value.code) == (503, "limits_unavailable")
