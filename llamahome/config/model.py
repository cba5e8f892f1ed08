"""A model and its precision."""

from __future__ import annotations

from dataclasses import dataclass

from llamahome.config.checks import one_of, require

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class ModelConfig:
    """A model by name.

    Attributes:
        name: the embedded model, a fine-tuned run, a Hugging Face folder, or a hub id.
        revision: branch, tag or commit of a hub id; None takes the default branch.
        dtype: precision of the weights in memory; `auto` is bfloat16 on a GPU and float32 on a CPU.
    """

    name: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "model.name", self.name, "give a model's name")
        one_of("model.dtype", self.dtype, DTYPES)
