"""A request whose replica is lost: where its answer goes on, and when it is given up.

Ray Serve replaces a dead replica within seconds; until then its router may still pick it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llamahome.requests import Progress
from serve.http.errors import ApiError, no_replica
from serve.wire import Accepted, Delta, GenerateRequest, Request

# Seconds before each further try. A request that no replica has held is given up after the last.
PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0)
# One that was being answered is tried again until its own timeout ends it.
LONGEST_PAUSE_S = 1.0
# A request may be the reason why its replicas are lost, so it may take only so many with it.
MAX_CRASHES = 2
MAX_HANGS = 2
MAX_DEATHS = 3


class Loss(Exception):
    """A replica that does not go on with a request, where another one may.

    Args:
        message: the reason.
        crashed: its engine broke while it held the request.
        hung: no token came in time.
        refusal: the error for the client if the replica has only refused the request.
    """

    def __init__(
        self,
        message: str,
        *,
        crashed: bool = False,
        hung: bool = False,
        refusal: ApiError | None = None,
    ) -> None:
        super().__init__(message)
        self.crashed = crashed
        self.hung = hung
        self.refusal = refusal


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds in which a replica has to give a request's first token, and each one after it."""

    first_token_s: float
    token_s: float

    def passed(self, started: bool) -> str:
        seconds, key = (
            (self.token_s, "serve.token_timeout_s")
            if started
            else (self.first_token_s, "serve.first_token_timeout_s")
        )
        return f"the engine gave no token for {seconds:g} s ({key})"


class Recovery:
    """One request, and what the replicas that were lost gave of its answer.

    Args:
        request: as the client sent it.
        pauses_s: seconds before each further try.
    """

    def __init__(self, request: Request, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._request = request
        self._pauses_s = pauses_s
        self._tokens: list[int] = []
        self._progress = Progress()
        self._tried = False
        self._held = False  # by the replica that is being tried
        self._ever_held = False
        self._pauses = 0
        self._crashes = self._hangs = self._deaths = 0

    def request(self) -> Request:
        """Return the request for the next replica: all of it, or what is left of the answer."""
        retried, self._tried = self._tried, True
        self._held = False
        if not retried or not isinstance(self._request, GenerateRequest):
            return self._request
        progress = replace(self._progress, tokens=tuple(self._tokens))
        return replace(self._request, progress=progress)

    def note(self, reply: Delta | Accepted) -> None:
        """Take in a reply of the replica that is being tried."""
        self._held = self._ever_held = True
        if isinstance(reply, Delta):
            self._tokens += reply.ids
            self._progress = Progress(held=reply.held)

    def after(self, loss: Loss) -> float:
        """Return the seconds to wait before the next try.

        Raises:
            ApiError: when there is none.
        """
        self._crashes += loss.crashed
        self._hangs += loss.hung
        refused = loss.refusal is not None
        self._deaths += self._held and not (loss.crashed or loss.hung or refused)
        self._ever_held = self._ever_held or loss.crashed
        if (error := self._final(loss)) is not None:
            raise error from loss
        pause = self._pauses_s[min(self._pauses, len(self._pauses_s) - 1)]
        self._pauses += 1
        return min(pause, LONGEST_PAUSE_S) if self._ever_held else pause

    def _final(self, loss: Loss) -> ApiError | None:
        """Return the error that ends the request, if this loss does."""
        if self._hangs >= MAX_HANGS:
            return ApiError(504, str(loss), code="timeout")
        if self._crashes >= MAX_CRASHES:
            message = f"{self._crashes} engines crashed while they computed this answer"
            return ApiError(500, message, code="engine")
        if self._deaths >= MAX_DEATHS:
            message = f"{self._deaths} engine replicas died while they computed this answer"
            return ApiError(500, message, code="engine")
        if self._ever_held:
            return None
        if loss.refusal is not None:
            return loss.refusal
        return no_replica() if self._pauses == len(self._pauses_s) else None
