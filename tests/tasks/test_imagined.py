"""The file of imagined prompts: unfinished rounds, edits by a person, and retired generations."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from distill_dagster.core.errors import InputError
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.imagined import (
    ImaginedPrompt,
    ImagineRound,
    find_imagined_problems,
    get_imagined_path,
    read_imagined,
)
from distill_dagster.teacher.asking.asked_prompt import read_asked_prompts
from distill_dagster.teacher.imagine.log import append_round, lock_imagined_file, start_new_generation
from distill_dagster.teacher.imagine.plan import collect_texts, count_imagine_requests
from tests.support.task import build_request_builder, reload_folder, write_small_task


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


class TestShippedWithATask:
    """Imagined prompts in the task folder, which are files of the user like the slices."""

    @staticmethod
    def ship(folder: TaskFolder, key: str, *lines: dict[str, object] | str) -> Path:
        file = get_imagined_path(folder.path, key)
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return file

    @staticmethod
    def line(text: str, **more: object) -> dict[str, object]:
        return {"kind": "prompt", "text": text, "method": "written", "teacher": "a model", **more}

    def test_they_are_prompts_of_their_slice_and_of_synthetic_origin(self, tmp_path: Path) -> None:
        folder = write_small_task(tmp_path)
        before = folder.read_slice("shop")
        self.ship(folder, "shop", self.line("who pays for the return", target_label="delivery"))
        fresh = reload_folder(folder)
        table = build_seed_prompts("shop", fresh.read_slice("shop"))
        [row] = table.filter(pl.col("origin") == "synthetic").to_dicts()
        assert row["messages"][0]["content"] == "who pays for the return"
        assert (row["target_label"], row["source"], row["axes"]) == ("delivery", "a model", '{"method":"written"}')
        assert table.height == len(before.seeds) + 1
        assert fresh.read_slice("shop").compute_content_version() != before.compute_content_version()
        assert check_task_folder(fresh) == []
        get_imagined_path(folder.path, "shop").unlink()
        assert reload_folder(folder).read_slice("shop").compute_content_version() == before.compute_content_version()

    def test_the_data_version_is_that_of_the_prompts_not_of_the_bytes(self, tmp_path: Path) -> None:
        folder = write_small_task(tmp_path)

        def version(*lines: dict[str, object] | str) -> str:
            self.ship(folder, "shop", *lines)
            return compute_source_version(reload_folder(folder), "slice_files", "shop")

        one, two = self.line("one more"), self.line("and another")
        plain = version(one, two)
        assert version(two, "", json.dumps(one, indent=None, separators=(" , ", " : "))) == plain
        ended = {"kind": "round", "requests": 1, "ended_at": "2026"}
        assert version(one, two | {"teacher": "another", "imagined_at": "2026"}, ended) == plain
        assert version(one, two | {"target_label": "login"}) != plain
        assert version(one) != plain
        assert version(self.line("retired"), {"kind": "fresh", "asked_at": "2026"}, one, two) == plain

    def test_their_target_label_reaches_no_request(self, tmp_path: Path) -> None:
        """Invariant of imagining: the teacher answers without knowing what a prompt was written for."""
        folder = write_small_task(tmp_path, teacher={"api_base": "http://127.0.0.1:9/v1"})
        requests = []
        for label in ("refund", "login"):
            self.ship(folder, "shop", self.line("it is gone", target_label=label))
            fresh = reload_folder(folder)
            table = build_seed_prompts("shop", fresh.read_slice("shop")).filter(pl.col("origin") == "synthetic")
            [prompt] = read_asked_prompts(table, refusals=False).values()
            requests.append(build_request_builder(fresh).build(prompt, 0))
        assert requests[0].key == requests[1].key
        assert "it is gone" in (requests[0].prompt or "")

    def test_they_count_for_the_target_and_are_not_imagined_again(self, tmp_path: Path) -> None:
        folder = write_small_task(tmp_path)
        path = folder.path / "slices" / "shop.yaml"
        path.write_text(path.read_text() + "target: 5\n")
        assert count_imagine_requests(folder.task, reload_folder(folder).read_slice("shop")).prompts == 2
        self.ship(folder, "shop", self.line("one more"), self.line("I want a refund"))
        slice_ = reload_folder(folder).read_slice("shop")
        assert count_imagine_requests(folder.task, slice_).prompts == 1, "the other one is a seed already"
        assert "one more" in collect_texts(slice_, slice_.imagination)

    def test_a_slice_can_have_them_alone(self, tmp_path: Path) -> None:
        folder = write_small_task(tmp_path)
        (folder.path / "slices" / "fair.yaml").write_text("description: A trade fair.\n")
        self.ship(folder, "fair", self.line("where is your stand"))
        fresh = reload_folder(folder)
        assert check_task_folder(fresh) == []
        assert build_seed_prompts("fair", fresh.read_slice("fair")).height == 1

    @pytest.mark.parametrize(
        ("lines", "number", "field", "message"),
        [
            (["", '{"kind": "prompt"'], 2, None, "malformed JSON"),
            ([{"kind": "prompt", "text": "x", "method": "m"}], 1, "teacher", "Field required"),
            ([{"kind": "prompt", "text": "x", "method": "m", "teacher": "t", "label": "refund"}], 1, "label", "Extra"),
            (
                ["", {"kind": "prompt", "text": "x", "method": "m", "teacher": "t", "target_label": "refnd"}],
                2,
                "target_label",
                "is not a label of this task",
            ),
        ],
    )
    def test_a_mistake_is_named_with_its_line(
        self, tmp_path: Path, lines: list[dict[str, object] | str], number: int, field: str | None, message: str
    ) -> None:
        folder = write_small_task(tmp_path)
        file = self.ship(folder, "shop", *lines)
        file.write_text(file.read_text().rstrip("\n"))  # an unfinished last line is a mistake here
        fresh = reload_folder(folder)
        with pytest.raises(InputError) as caught:
            fresh.read_slice("shop")
        [problem] = caught.value.problems
        assert (problem.file, problem.line, problem.field) == (file, number, field)
        assert message in problem.message
        assert [p.message for p in check_task_folder(fresh)] == [problem.message]
        assert fresh.read_slice("web").seeds

    def test_a_file_of_no_slice_and_a_repeated_golden_text_are_named(self, tmp_path: Path) -> None:
        folder = write_small_task(tmp_path)
        self.ship(folder, "shops", self.line("one more"))
        self.ship(folder, "web", self.line(folder.golden[0].text.upper()))
        found = {(p.file.name, p.severity, p.message) for p in check_task_folder(reload_folder(folder))}
        assert found == {
            ("shops.jsonl", "error", "there is no slice of this name."),
            ("web.jsonl", "warning", f"a prompt has the text of golden.jsonl row {folder.golden[0].id}."),
        }

    def test_symbolic_links_are_not_followed(self, tmp_path: Path) -> None:
        folder = write_small_task(tmp_path)
        file = self.ship(folder, "shop", self.line("one more"))
        (tmp_path / "elsewhere.jsonl").write_text(file.read_text())
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere.jsonl")
        with pytest.raises(InputError, match="symbolic link"):
            reload_folder(folder).read_slice("shop")
