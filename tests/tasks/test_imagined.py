"""The file of imagined prompts: unfinished rounds, edits by a person, and retired generations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_dagster.core.errors import InputError
from distill_dagster.tasks.imagined import (
    ImaginedPrompt,
    ImagineRound,
    find_imagined_problems,
    get_imagined_path,
    read_imagined,
)
from distill_dagster.teacher.imagine.log import append_round, lock_imagined_file, start_new_generation


def one(text: str, **changes: object) -> ImaginedPrompt:
    values = {"text": text, "method": "grid", "teacher": "t", "template_version": "v", "request_key": "k"}
    return ImaginedPrompt.model_validate(values | {"imagined_at": "2026-01-01"} | changes)


ROUND = ImagineRound(requests=3, failed=1, duplicates=2, near_duplicates=1, ended_at="2026-01-01")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = get_imagined_path(tmp_path / "accepted" / "shop_mail", "shop")
    with lock_imagined_file(file):
        append_round(file, [one("a", axes={"persona": "x"}, target_label="refund"), one("b")], ROUND)
    return file


def texts(path: Path) -> list[str]:
    return [prompt.text for prompt in read_imagined(path).prompts]


def test_prompts_are_read_as_they_were_written(path: Path) -> None:
    found = read_imagined(path)
    assert found.prompts == (one("a", axes={"persona": "x"}, target_label="refund"), one("b"))
    assert (found.rounds, found.generation, found.retired, found.requests) == ((ROUND,), 0, 0, 3)
    assert read_imagined(path.with_name("web.jsonl")).prompts == ()


@pytest.mark.parametrize("cut", [2, 10, 200, 400])
def test_a_round_counts_whole_or_not_at_all(path: Path, cut: int) -> None:
    """As if the process had been killed while it wrote the second round."""
    before = path.read_bytes()
    with lock_imagined_file(path):
        append_round(path, [one("c"), one("d")], ROUND)
    path.write_bytes(path.read_bytes()[:-cut])
    assert texts(path) == ["a", "b"]
    with lock_imagined_file(path):
        append_round(path, [one("e")], ROUND)
    assert texts(path) == ["a", "b", "e"]
    assert path.read_bytes().startswith(before)
    assert b'"c"' not in path.read_bytes()


def test_a_missing_line_break_at_the_end_loses_nothing(path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert texts(path) == ["a", "b"]
    with lock_imagined_file(path):
        append_round(path, [one("c")], ROUND)
    assert texts(path) == ["a", "b", "c"]


def test_a_new_generation_retires_the_prompts_and_keeps_their_lines(path: Path) -> None:
    before = path.read_bytes()
    found = start_new_generation(path)
    assert (found.prompts, found.rounds, found.generation, found.retired) == ((), (), 1, 2)
    assert path.read_bytes().startswith(before)
    with lock_imagined_file(path):
        append_round(path, [one("c")], ROUND)
    assert texts(path) == ["c"]
    assert start_new_generation(path).retired == 3
    new = path.with_name("new.jsonl")
    assert start_new_generation(new).generation == 1


def test_a_person_may_remove_a_prompt(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line).get("text") != "a"))
    assert texts(path) == ["b"]


def test_broken_lines_are_named(path: Path) -> None:
    lines = path.read_text().splitlines()
    broken = ["{", lines[0].replace('"method":"grid",', ""), '{"kind": "other"}', lines[1].replace('"b"', '" "')]
    path.write_text("\n".join([*lines, *broken]) + "\n")
    with pytest.raises(InputError) as caught:
        read_imagined(path)
    assert [(p.file, p.line, p.field) for p in caught.value.problems] == [
        (path, 4, None), (path, 5, "method"), (path, 6, None), (path, 7, "text")
    ]  # fmt: skip
    assert list(find_imagined_problems(path.parent.parent)) == list(caught.value.problems)
    with pytest.raises(InputError), lock_imagined_file(path):
        append_round(path, [], ROUND)


def test_links_are_not_followed(path: Path) -> None:
    link = path.with_name("web.jsonl")
    link.symlink_to(path)
    with pytest.raises(InputError, match="symbolic links are not followed"):
        read_imagined(link)
