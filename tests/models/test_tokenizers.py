"""A chat template that does not parse is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llamahome.models import ModelError
from llamahome.models.tokenizers import check_chat_template

BROKEN = "{% for m in messages %}\n{{ m.content }\n{% endfor %}"


def _load(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize(
    "template", ["{{ messages }}", "{% generation %}{% endgeneration %}", None]
)
def test_a_template_that_parses_is_taken(tiny_folder: Path, template: str | None) -> None:
    tokenizer = _load(tiny_folder)
    tokenizer.chat_template = template
    check_chat_template(tokenizer, tiny_folder)


@pytest.mark.parametrize(
    ("template", "line"),
    [(BROKEN, 2), ("{{ messages | nosuchfilter }}", 1), ("{% if x %}", 1)],
    ids=["brace", "filter", "open block"],
)
def test_a_template_that_does_not_parse_is_refused(
    tiny_folder: Path, template: str, line: int
) -> None:
    (tiny_folder / "chat_template.jinja").write_text(template)
    where = f"{tiny_folder}/chat_template.jinja: line {line} of the chat template: "
    with pytest.raises(ModelError, match=where):
        check_chat_template(_load(tiny_folder), tiny_folder)


def test_a_template_in_the_tokenizers_config_is_found(tiny_folder: Path) -> None:
    (tiny_folder / "chat_template.jinja").unlink()
    file = tiny_folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": BROKEN}))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: line 2 .*correct the template"):
        check_chat_template(_load(tiny_folder), tiny_folder)


def test_each_of_several_templates_is_checked(tiny_folder: Path) -> None:
    (tiny_folder / "additional_chat_templates").mkdir()
    (tiny_folder / "additional_chat_templates" / "tools.jinja").write_text(BROKEN)
    with pytest.raises(ModelError, match=r"additional_chat_templates/tools\.jinja: line 2"):
        check_chat_template(_load(tiny_folder), tiny_folder)
