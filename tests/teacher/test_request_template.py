"""Requests from a request template equal those that are rendered for each text, with the same keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.core.hashing import hash_content, hash_strings
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.templates import Templates
from distill_dagster.tables.messages import make_message
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt, build_asked_prompt
from distill_dagster.teacher.asking.request_template import PLACEHOLDER, can_render
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.providers.client import resolve_endpoint
from tests.support.kind_folder import write_kind_folder
from tests.support.kinds import KINDS
from tests.support.task import build_request_builder, write_small_task

URL = "http://127.0.0.1:9/v1"
SETTINGS: dict[str, dict[str, Any]] = {
    "chat": {"few_shot": {"per_label": 1, "draws": 2}},
    "sampled": {"few_shot": {"per_label": 1, "draws": 2}, "samples": 2, "temperature": 0.7},
    "schema": {"response_format": "json_schema"},
    "text": {"api": "text", "few_shot": {"per_label": 2, "draws": 2}},
}
TEXTS = [
    "a text",
    "two\n  lines of “text” ",
    'a "quoted" \\ back\tslash',
    "\u2028😀\x00\x7f",
    " é",
    "",
    " \n",
    PLACEHOLDER[:9],
]
PINNED = "0be8b5c62b6fdaa9d581b388fe3074c714b74b887dfb4542f052c743e7eedd96"


@contextmanager
def requests(
    kind: str, setting: str, templates: dict[str, str] | None = None, **changes: Any
) -> Iterator[RequestBuilder]:
    with TemporaryDirectory() as name:
        settings: dict[str, Any] = {"teacher": SETTINGS[setting], "reasoning": kind in ("math", "qa", "nli")}
        folder = write_kind_folder(Path(name), kind, URL, **settings | changes)
        for part, source in (templates or {}).items():
            (folder.path / "templates").mkdir(exist_ok=True)
            (folder.path / "templates" / f"{kind}_{part}.j2").write_text(source)
        yield build_request_builder(folder)


def assert_equal(requests: RequestBuilder, prompt: AskedPrompt) -> None:
    for sample in range(4):
        made, rendered = requests.build(prompt, sample), requests.render(prompt, sample)
        assert made == rendered
        assert made.key == hash_content(rendered.key_fields)
        assert made.build_body() == rendered.build_body()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_from_a_template_equals_the_rendered_one(kind: str, setting: str) -> None:
    with requests(kind, setting) as made:

        @settings(max_examples=25, deadline=None)
        @given(st.text())
        def check(text: str) -> None:
            assert_equal(made, AskedPrompt(text))

        check()
        assert made._request_templates
        for text in TEXTS:
            assert_equal(made, AskedPrompt(text))


@pytest.mark.parametrize(
    ("templates", "templated"),
    [
        ({"system": "About {{ text | one_line }}: {{ text }}", "user": "{{ text }}{{ text | one_line }} "}, True),
        ({"system": "{% for label in labels %}{{ label.name }}{{ text }}{% endfor %}"}, True),
        ({"system": "{% if examples %}{{ text }}{% endif %}", "user": "{{ item }}"}, True),
        ({"user": "{{ text | upper }}"}, False),
        ({"user": "{{ text | one_line | trim }}"}, False),
        ({"user": "{{ text }} has {{ text | length }} characters"}, False),
        ({"user": "{% if 'two' in text %}two {% endif %}{{ text }}"}, False),
        ({"system": "{% set said = text %}{{ said | lower }}"}, False),
        ({"system": "{% set said %}{{ text }}{% endset %}{{ said | lower }}"}, False),
        ({"system": "{% filter lower %}{{ text }}{% endfilter %}"}, False),
        ({"system": "{% macro said() %}{{ text }}{% endmacro %}{{ said() | lower }}"}, False),
        (
            {"system": "{% for n in [[]] recursive %}{{ text }}{% if n %}{{ loop(n) | upper }}{% endif %}{% endfor %}"},
            False,
        ),
        ({"system": "{% for text in ['one'] %}{{ text }}{% endfor %}"}, False),
    ],
    ids=str,
)
def test_templates_that_do_more_than_print_the_text_are_rendered(templates: dict[str, str], templated: bool) -> None:
    with requests("classification", "chat", templates) as made:
        for text in [*TEXTS, "Two WORDS"]:
            assert_equal(made, AskedPrompt(text))
        assert bool(made._request_templates) is templated


def test_a_template_that_reads_no_text() -> None:
    own = Templates({"classification_user": "{{ item }}"})
    assert own.only_prints("user", "text")
    assert not own.only_prints("system", "labels")


def test_a_conversation_is_rendered() -> None:
    with requests("conversation", "chat") as made:
        turns = (("user", "one"), ("assistant", "two"), ("user", "three"))
        assert_equal(made, build_asked_prompt([make_message(*turn) for turn in turns]))
        assert not made._request_templates


def test_nearest_examples_are_chosen_for_each_text(tmp_path: Path) -> None:
    def embed(texts: list[str]) -> np.ndarray:
        """Each letter is one dimension."""
        counts = np.array([[text.count(chr(n)) + 1e-6 for n in range(97, 123)] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    folder = write_small_task(tmp_path, teacher={"api": "chat", "api_base": URL, "few_shot": {"nearest": 2}})
    task, templates = folder.task, Templates({})
    made = RequestBuilder(
        task,
        templates,
        read_example_pool(build_prompt_context(folder.examples, set())),
        resolve_endpoint(task.teacher),
        embed,
    )
    for text in ("refund", "delivery"):
        assert_equal(made, AskedPrompt(text))
    one, other = ((made.build(AskedPrompt(text), 0).messages or [])[:-1] for text in ("refund", "delivery"))
    assert one != other


def test_a_text_that_rendering_would_trim_cannot_be_rendered() -> None:
    assert [can_render(text) for text in ("x", " x", "x\n", "", "\u2003", "x\x1f")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_keys_are_those_of_stored_answers() -> None:
    """With a changed key, every stored answer would be paid for again."""
    keys = []
    for kind in KINDS:
        for setting in SETTINGS:
            with requests(kind, setting) as made:
                keys += [made.build(AskedPrompt(text), sample).key for text in TEXTS[:-1] for sample in range(2)]
    assert hash_content(keys) == PINNED


@given(st.lists(st.text()))
def test_the_hash_of_strings(values: list[str]) -> None:
    assert hash_strings(*values) == hash_content(values)
