"""Records of any content: what cannot be read is named, and nothing else is raised."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.config import ReplaySpec, Task
from distill_dagster.core.errors import InputError
from distill_dagster.intake.import_options import ImportLog, ImportOptions
from distill_dagster.intake.labelled_records import build_rows
from distill_dagster.intake.prompt_fields import PromptFieldError, find_prompt
from distill_dagster.intake.recordings import Recording, parse_recordings
from distill_dagster.intake.row_files import SourceRecord, scan_records
from tests.intake.test_recordings import FAILED_CALLS, SHAPES
from tests.support.kind_folder import write_kind_folder

WORDS = st.sampled_from(
    [
        "",
        "q",
        "user",
        "assistant",
        "error",
        "[",
        '[{"role": "user"',
        '{"messages": [1]}',
        "\u2028",
        "0",
        "1e999",
        "null",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        *("role", "content", "from", "value", "parts", "type", "text", "choices", "message", "messages", "tool_calls"),
        *("function_call", "function", "arguments", "candidates", "output", "input", "response", "body", "usage"),
        *("status", "error", "history", "images", "kwargs", "id", "generations", "instruction", "prompt", "data"),
    ]
)


def places_of(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for name, item in items for found in places_of(item, (*place, name)))]


@st.composite
def odd_records(draw: st.DrawFn) -> Any:
    """A known record with some of its values replaced or added."""
    known = [*SHAPES.values(), *FAILED_CALLS.values()]
    record = {"record": copy.deepcopy(draw(st.sampled_from(known)))}
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places_of(record)[1:]))
        parent: Any = record
        for step in place[:-1]:
            parent = parent[step]
        if isinstance(parent[place[-1]], dict) and draw(st.booleans()):
            parent[place[-1]][draw(NAMES)] = draw(VALUES)
        else:
            parent[place[-1]] = draw(VALUES)
    return record["record"]


@settings(max_examples=1000)
@given(odd_records() | VALUES)
def test_a_record_is_read_or_named(record: Any) -> None:
    with contextlib.suppress(PromptFieldError):
        assert isinstance(find_prompt(record).text, str)
    for replay in (
        ReplaySpec(),
        ReplaySpec(completion="output.text", prompt="input", reasoning="a.b", model="m", id="id"),
    ):
        recordings: list[Recording] = []
        remedy = "none is needed"
        try:
            recordings = parse_recordings(record, replay)
        except ValueError as error:
            remedy = getattr(error, "remedy", "")
        assert remedy
        for found in recordings:
            parse_recordings(found.to_json(), ReplaySpec())
            assert json.loads(json.dumps(found.to_json())) == found.to_json()


@pytest.mark.parametrize("prompt", ['[{"role": "user"', '{"role": "user", "content": "a"}', "[1]", "{", "plain"])
def test_a_recorded_prompt_that_begins_as_json_is_read_again(prompt: str) -> None:
    recording = Recording("an answer", prompt, id="1")
    assert parse_recordings(recording.to_json(), ReplaySpec()) == [recording]


@pytest.mark.parametrize(
    "completion",
    [
        '[{"role": "user"',
        '[{"role": "user", "content": "a"}]',
        '{"role": "user", "content": "a"}',
        '{"total": 3}',
        "{",
        "a",
    ],
)
def test_a_recorded_completion_that_begins_as_json_is_read_again(completion: str) -> None:
    recording = Recording(completion, "a prompt", id="1")
    assert parse_recordings(json.loads(json.dumps(recording.to_json())), ReplaySpec()) == [recording]


@settings(max_examples=500)
@given(
    st.sampled_from(["a.csv", "a.json", "a.jsonl", "a.tsv"]),
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
)
def test_a_file_is_read_or_named(tmp_path_factory: Any, name: str, content: bytes) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / name
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        found = scan_records(path)
        assert found.records
        assert all(problem.line is None or problem.line > 0 for problem in found.problems)


@settings(max_examples=300)
@given(st.lists(odd_records() | st.dictionaries(NAMES | WORDS, VALUES), min_size=1, max_size=3))
def test_records_become_rows_or_are_named(tasks: list[Task], records: list[Any]) -> None:
    sources = [SourceRecord(record, Path("x.json"), None, f"record {n}") for n, record in enumerate(records)]
    for task in tasks:
        log = ImportLog(Path("x.json"), ImportOptions("golden", skip_invalid=True), (), ())
        rows = build_rows(task, sources, log)
        assert len(rows) + sum(log.skipped.values()) == len(records), "every record is a row or counted"
        assert [row.id for _, _, row in rows] == [raw["id"] for _, raw, _ in rows]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """Tasks whose rows have labels, texts and turns."""
    kinds = ("classification", "generation", "conversation", "tool_call")
    url = "http://127.0.0.1:9/v1"
    return [write_kind_folder(tmp_path_factory.mktemp("tasks"), kind, url).task for kind in kinds]
