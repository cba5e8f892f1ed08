"""Field types that request bodies are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, eq=False)
class Only:
    """Accepts null and `neutral`, and refuses every other value as not supported."""

    neutral: tuple[object, ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [None, *self.neutral]}

    def _checked(self, value: object) -> object:
        # bool is an int in Python: compare kinds too, or `n: true` would pass for 1.
        if value is None or any(value == n and type(value) is type(n) for n in self.neutral):
            return value
        allowed = " or ".join(repr(n) for n in self.neutral)
        raise PydanticCustomError(
            "unsupported",
            "not supported here; leave it out{allowed}",
            {"allowed": f" or send {allowed}" if allowed else ""},
        )


def only(*neutral: object) -> Only:
    """Return the type of a field whose feature does not exist here, by its neutral values."""
    return Only(neutral)


Absent = Annotated[Any, only()]
Off = Annotated[Any, only(False)]
Empty = Annotated[Any, only([], {})]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
