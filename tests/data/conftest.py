"""The embedded model's tokenizer, with its own chat template."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llamahome.models import EMBEDDED_MODEL, ModelManager


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerBase:
    folder = ModelManager().resolve(EMBEDDED_MODEL)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
