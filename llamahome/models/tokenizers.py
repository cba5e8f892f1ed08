"""Checks of a model's tokenizer."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from llamahome.models.errors import ModelError

DEFAULT = "default"


def check_chat_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Compile the chat templates that a tokenizer was loaded with from `folder`.

    Raises:
        ModelError: for one that does not parse, which would else fail in the first chat.
    """
    templates = tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {DEFAULT: templates}
    for name, template in templates.items():
        try:
            render_jinja_template([], chat_template=template)
        except TemplateSyntaxError as error:
            place = f"{_file(folder, name)}: line {error.lineno} of the chat template"
            raise ModelError(
                f"{place}: {error.message}; correct the template, or get the model again"
            ) from error


def _file(folder: Path, name: str) -> Path:
    """Return the file of a chat template; older models have it in their tokenizer's config."""
    file = "chat_template.jinja" if name == DEFAULT else f"additional_chat_templates/{name}.jinja"
    return folder / (file if (folder / file).is_file() else "tokenizer_config.json")
