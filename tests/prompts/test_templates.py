"""Templates are sandboxed, strict about names, and versioned by their text."""

from __future__ import annotations

import pytest

from distill_dagster.config import LabelSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.prompts import templates
from distill_dagster.prompts.few_shot import FewShotExample
from distill_dagster.prompts.templates import CLASSIFICATION_TEMPLATES, Templates

VALUES = {
    "text": "my  text\nof two lines ",
    "examples": [FewShotExample("1", "first\nexample", "refund")],
    "labels": [LabelSpec(name="refund", description="money back"), LabelSpec(name="login", description="signing in")],
    "instructions": "Sort it.",
    "item": "Ticket",
}


def rendered(source: str, name: str = "classification_user") -> str:
    return Templates({name: source}).render(name, **VALUES)


def test_the_built_in_templates() -> None:
    built_in = Templates({})
    assert built_in.render("classification_text", **VALUES) == "first example => refund\nmy text of two lines =>"
    assert built_in.render("classification_user", **VALUES) == "my  text\nof two lines"
    assert built_in.render("classification_system", **VALUES) == (
        "Sort it.\n\nCategories:\n- refund: money back\n- login: signing in\n\n"
        "Answer with the name of one category and nothing else."
    )
    for name in CLASSIFICATION_TEMPLATES:
        assert templates.find_template_problems(name, templates.read_built_in_template(name)) == []


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ text.__class__ }}",
        "{{ labels[0].__init__.__globals__ }}",
        "{{ labels.append(1) }}",
        "{{ ''['__class__'] }}",
        "{{ text | attr('__class__') }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{% for n in range(10 ** 9) %}{% endfor %}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_the_sandbox(source: str) -> None:
    with pytest.raises(DistillError, match=r"templates/classification_user\.j2"):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ slice }}",
        "{{ text.missing }}",
        "{{ text / 2 }}",
        "{{ 1 / 0 }}",
        "{{ text | nope }}",
        "{% if %}",
        "{{ text() }}",
    ],
)
def test_a_rendering_error_names_the_template_and_the_remedy(source: str) -> None:
    with pytest.raises(DistillError, match=r"templates/classification_user\.j2: .*A template may use text, examples"):
        rendered(source)


def test_problems_are_found_without_rendering() -> None:
    assert (
        templates.find_template_problems(
            "classification_user", "{{ text | one_line }}{% for l in labels %}{{ loop.index }}{% endfor %}"
        )
        == []
    )
    assert templates.find_template_problems("classification_user", "{% set a = 1 %}{{ a }} {{ range(2) }}") == []
    [(line, message, remedy)] = templates.find_template_problems("classification_user", "{{ text }}\n\n{{ textt }}")
    assert (line, message) == (3, "'textt' is not a variable of templates.")
    assert "text, examples" in remedy


def test_an_own_template_changes_the_version_and_another_name_does_not() -> None:
    built_in = Templates({})
    assert Templates({"classification_user": "{{ text }}!"}).version != built_in.version
    assert (
        Templates({"classification_user": templates.read_built_in_template("classification_user")}).version
        == built_in.version
    )
    assert Templates({"other": "x"}).version == built_in.version
    assert len(built_in.version) == 12


def test_an_own_template_is_used() -> None:
    own = Templates({"classification_user": "<{{ item }}> {{ text }}"})
    assert own.render("classification_user", **VALUES) == "<Ticket> my  text\nof two lines"
    assert own.render("classification_text", **VALUES).startswith("first example")


@pytest.mark.parametrize(
    ("text", "line"), [("a\nb", "a b"), ("  a \t b\r\n", "a b"), ("a\u2028b\u00a0c", "a b c"), ("", ""), (7, "7")]
)
def test_one_line(text: object, line: str) -> None:
    assert (
        Templates({"classification_user": "[{{ text | one_line }}]"}).render(
            "classification_user", **(VALUES | {"text": text})
        )
        == f"[{line}]"
    )


def test_text_is_not_escaped_and_not_rendered_again() -> None:
    text = "<b>{{ instructions }}</b> & {% raw %}"
    assert Templates({}).render("classification_user", **(VALUES | {"text": text})) == text
