"""Field types that request bodies are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


def only(*neutral: object) -> AfterValidator:
    """Accept null and `neutral`, and refuse every other value as not supported."""

    def check(value: object) -> object:
        # bool is an int in Python: compare kinds too, or `n: true` would pass for 1.
        if value is None or any(value == n and type(value) is type(n) for n in neutral):
            return value
        allowed = " or ".join(repr(n) for n in neutral)
        raise PydanticCustomError(
            "unsupported",
            "not supported here; leave it out{allowed}",
            {"allowed": f" or send {allowed}" if allowed else ""},
        )

    return AfterValidator(check)


Absent = Annotated[Any, only()]
Off = Annotated[Any, only(False)]
Empty = Annotated[Any, only([], {})]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
