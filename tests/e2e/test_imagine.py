"""`target: N` in a slice, through the command line and Dagster."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.core.text import normalize_text
from distill_dagster.pipeline.stage_table import STAGES
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import PROMPTS, SCORED
from tests.e2e.project import SEEDS, TASK, CommandResult, Project, create_project
from tests.support.imagining import answer_as_teacher, get_request_text, is_imagine_request
from tests.support.provider import FakeProvider, Fault
from tests.support.task import LABELS

AXES = {"difficulty": ["easy", "tricky"], "persona": ["a student", "an accountant", "a grandmother"]}
IMAGINE: dict[str, Any] = {"axes": AXES, "per_request": 2}


@pytest.fixture
def below_target(provider: FakeProvider, tmp_path: Path) -> Project:
    """The task of the other tests, never run; slice `shop` has 6 seeds and the target 14."""
    provider.answer = answer_as_teacher
    project = create_project(tmp_path / "below_target", provider.url, imagine=IMAGINE)
    project.change_slice("shop", lambda value: value.update(target=14))
    return project


def prompts(project: Project, key: str = "shop") -> pl.DataFrame:
    return project.lake.read(TASK, "seed_prompts", key, PROMPTS)[0]


def imagined(project: Project) -> set[str]:
    return set(prompts(project).filter(pl.col("origin") == "synthetic")["prompt_id"])


def imagine(project: Project, *arguments: str) -> CommandResult:
    ended = project.distill("imagine", TASK, "--json", *arguments)
    assert ended.code == 0, ended.err
    return ended


def test_a_slice_is_filled_to_its_target_and_kept(below_target: Project, provider: FakeProvider) -> None:
    ended = below_target.distill("backfill", TASK, "--json")
    assert ended.code == 0, ended.err
    first = [seen for seen in provider.requests if is_imagine_request(seen)]
    assert len(first) == 4
    assert below_target.record("seed_prompts", "shop").extra["teacher_calls"] == 4
    assert "teacher_calls" not in below_target.record("seed_prompts", "web").extra
    assert ended.json["teacher_calls"] == len(provider.requests)
    table = prompts(below_target)
    assert (table.height, prompts(below_target, "web").height) == (14, 6)
    made = table.filter(pl.col("origin") == "synthetic").to_dicts()
    assert len(made) == 8
    for row in made:
        axes = json.loads(row["axes"])
        assert axes["method"] in {"grid", "self_instruct", "evolve"}
        assert set(axes) - {"method"} == {"grid": set(AXES), "evolve": {"evolution"}}.get(axes["method"], set())
        assert (row["parent_prompt_id"] is not None) == (axes["method"] == "evolve")
        assert row["parent_prompt_id"] is None or row["parent_prompt_id"] in set(table["prompt_id"])
        assert (row["target_label"] is None) == (axes["method"] == "evolve")
    # The label that was asked for is a column, next to the teacher's answer.
    scored = below_target.lake.read(TASK, "scored_completions", "shop", SCORED)[0]
    both = scored.filter(pl.col("target_label").is_not_null())
    assert both.height == sum(row["target_label"] is not None for row in made)
    assert all(row["answer"] in row["axes"] or json.loads(row["answer"]) in LABELS for row in both.to_dicts())
    assert set(scored.filter(pl.col("origin") == "synthetic")["axes"]) == {row["axes"] for row in made}

    # Nothing is asked again, and nothing runs.
    asked, before = len(provider.requests), imagined(below_target)
    assert below_target.distill("backfill", TASK, "--json").json["partitions"] == {}
    assert imagine(below_target).json["teacher_calls"] == 0
    # One more seed: one prompt less is missing, and accepted prompts stay.
    below_target.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    assert below_target.distill("backfill", TASK, "--json").code == 0
    assert not any(is_imagine_request(seen) for seen in provider.requests[asked:])
    assert imagined(below_target) == before
    assert prompts(below_target).height == 15
    # A raised target asks only for the difference.
    below_target.change_slice("shop", lambda value: value.update(target=18))
    assert below_target.distill("backfill", TASK, "--json").code == 0
    assert sum(is_imagine_request(seen) for seen in provider.requests[asked:]) == 2
    assert before < imagined(below_target)
    assert prompts(below_target).height == 18


def test_fresh_retires_and_asks_differently(below_target: Project, provider: FakeProvider) -> None:
    dry = imagine(below_target, "--dry-run").json
    assert dry["imagined"] == {
        "shop": {"target": 14, "imagined": 0, "retired": 0, "missing": 8, "requests": 4, "at_most": 20}
    }
    assert provider.requests == []
    first = imagine(below_target).json
    before_gate = {"prompt_context", "teacher_prior", "golden_completions"}
    assert set(first["partitions"]) == before_gate | {"teacher_gate", "seed_prompts"}, "the gate runs first"
    assert first["imagined"]["shop"]["imagined"] == 8
    before = imagined(below_target)
    imagine(below_target, "--fresh", "--dry-run")
    assert imagined(below_target) == before
    again = imagine(below_target, "--fresh").json
    assert again["teacher_calls"] == 4
    assert again["teacher_calls_cached"] == 0
    assert again["imagined"]["shop"]["retired"] == 8
    assert not imagined(below_target) & before
    kept = (below_target.home / "accepted" / TASK / "imagined" / "shop.jsonl").read_text()
    assert kept.count('"kind":"prompt"') == 16, "retired prompts stay in the file"
    status = below_target.distill("status", TASK, "--json").json
    states = {one["name"]: one["state"] for one in status["artifacts"]}
    assert states["seed_prompts[shop]"] == "fresh"


def test_no_request_shows_golden_dev_or_the_slices_name(below_target: Project, provider: FakeProvider) -> None:
    held_out = [
        json.loads(line)["text"] for f in ("golden", "dev") for line in (below_target.folder / f"{f}.jsonl").open()
    ]
    seeds = [*SEEDS["shop"], held_out[0].upper(), f"  {held_out[-1]}!"]
    below_target.change_task(description="Sort messages.")
    below_target.change_slice("shop", lambda value: value.update(seeds=seeds, target=60, description="A department."))
    # Every second answer is a golden text: it is accepted here, dropped later, and never shown.
    provider.answer = lambda seen: (
        f"{held_out[1]}\n2. {answer_as_teacher(seen).splitlines()[0]}" if is_imagine_request(seen) else "x"
    )
    imagine(below_target)
    asked = [seen for seen in provider.requests if is_imagine_request(seen)]
    assert len(asked) > 30
    assert normalize_text(held_out[1]) in {
        normalize_text(get_user_text(row["messages"])) for row in prompts(below_target).to_dicts()
    }
    for seen in asked:
        shown = normalize_text(get_request_text(seen))
        assert not [text for text in held_out if normalize_text(text) in shown]
        assert not re.search(r"\bshop\b", shown)


def test_a_slice_that_brings_nothing_new_is_left_as_it_is(
    below_target: Project, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.answer = lambda seen: (
        "always the same\n2. always  the SAME!" if is_imagine_request(seen) else answer_as_teacher(seen)
    )
    ended = imagine(below_target)
    assert ended.json["imagined"]["shop"]["imagined"] == 1
    asked = len(provider.requests)
    assert sum(map(is_imagine_request, provider.requests)) == 4 + 4 + 4, (
        "one prompt in the first round, none in two more"
    )
    assert below_target.record("seed_prompts", "shop").missing_rows == 0
    assert below_target.distill("backfill", TASK, "--json").code == 0
    assert below_target.distill("refresh", TASK, "--json").json["partitions"].get("seed_prompts") is None
    assert not any(is_imagine_request(seen) for seen in provider.requests[asked:]), "never asked again by itself"
    shown = below_target.distill("status", TASK)
    assert "7 prompts below its target" in " ".join(shown.out.split())
    monkeypatch.setitem(STAGES, "seed_prompts", replace(STAGES["seed_prompts"], code_version="next"))
    ended = below_target.distill("backfill", TASK, "--json")
    assert "shop" in ended.partitions["seed_prompts"]
    assert not any(is_imagine_request(seen) for seen in provider.requests[asked:]), "new code alone asks for nothing"
    assert below_target.record("seed_prompts", "shop").extra["below_target"] == 7
    provider.answer = answer_as_teacher
    assert imagine(below_target).json["imagined"]["shop"]["missing"] == 0, "asked for, it tries again"


def test_a_teacher_that_refuses_is_said_and_taken_up_later(below_target: Project, provider: FakeProvider) -> None:
    provider.fail = lambda seen, _: Fault(401) if is_imagine_request(seen) else None
    ended = below_target.distill("imagine", TASK, "--json")
    assert ended.code == 1
    assert "401" in ended.json["failed"]["seed_prompts[shop]"]
    provider.fail = lambda seen, _: Fault(500) if is_imagine_request(seen) else None
    ended = below_target.distill("imagine", TASK, "--json")
    assert ended.code == 0, "the seeds are there; what is missing counts as missing rows"
    assert below_target.record("seed_prompts", "shop").missing_rows == 8
    provider.fail = None
    assert below_target.distill("backfill", TASK, "--json").code == 0
    assert below_target.record("seed_prompts", "shop").missing_rows == 0
    assert prompts(below_target).height == 14
    ended = below_target.distill("imagine", TASK, "--slice", "web")
    assert ended.code == 2
    assert "the slice has no target" in ended.err
