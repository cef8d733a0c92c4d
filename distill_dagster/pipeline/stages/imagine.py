"""The imagining part of the stage seed_prompts: fill a slice up to its target, check it, and describe the result."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.pipeline.stages.context import DisplayValue, SampleTable, StageInputs
from distill_dagster.prompts.templates import IMAGINE_TEMPLATES, select_templates
from distill_dagster.tasks import Slice
from distill_dagster.tasks.imagined import get_imagined_path
from distill_dagster.teacher.imagine.ask import ImagineResult, imagine_prompts
from distill_dagster.teacher.imagine.plan import Imaginer, count_imagine_requests, get_imagine_teacher
from distill_dagster.teacher.providers.terms import find_terms


def imagine_for_slice(inputs: StageInputs, key: str, slice_: Slice) -> tuple[Slice, ImagineResult | None]:
    """Imagine prompts for a slice up to its target; return the slice with them.

    Asks, and starts a server, only if the slice is below its target. Otherwise the result is None. A slice that stayed
    below its target after all rounds is not asked for again only because the code of this stage changed.

    Raises:
        DistillError: the slice is below its target, and the task has no folder for accepted prompts.
        TeacherError: the teacher refuses every request.
    """
    env, folder, task = inputs.env, inputs.env.folder, inputs.env.folder.task
    missing = count_imagine_requests(task, slice_).prompts
    if not missing:
        return slice_, None
    before = env.lake.read_record(env.task_name, inputs.asset, key)
    gave_up = before is not None and before.extra.get("below_target") and not before.missing_rows
    if before is not None and gave_up and before.code_version != inputs.stage.code_version:
        return slice_, ImagineResult(slice_.imagination, missing)
    if folder.accepted is None:
        raise DistillError(
            f"{folder.name} has no folder for accepted prompts, so nothing can be imagined. Open the task with one."
        )
    own_templates = select_templates(folder.read_templates(), IMAGINE_TEMPLATES)
    held_out = [*folder.golden, *folder.dev]
    path = get_imagined_path(folder.accepted, key)
    with env.endpoint(get_imagine_teacher(task)) as endpoint:
        imaginer = Imaginer(task, key, slice_, held_out, own_templates, endpoint.identity)
        result = imagine_prompts(imaginer, path, endpoint, env.store, inputs.account)
    return slice_.with_imagined(result.history), result


def build_imagine_record(result: ImagineResult | None) -> dict[str, Any]:
    """Build the field of the record of seed_prompts for a slice that stays below its target."""
    return {"below_target": result.missing} if result is not None and result.missing else {}


def check_target_reached(slice_: Slice, frame: pl.DataFrame, result: ImagineResult | None) -> CheckResult:
    """Warn if a slice is below its target. Prompts missing after all rounds are not asked for again by themselves."""
    details: dict[str, Any] = {"target": slice_.target or "none", "prompts": frame.height}
    if result is not None and result.missing:
        errors = Counter(result.errors).most_common(5)
        details |= {"missing": result.missing, "rounds": result.rounds}
        details["errors"] = "; ".join(f"{count} × {error}" for error, count in errors)
    return CheckResult("target_reached", frame.height >= (slice_.target or 0), "warning", details)


def build_imagine_metadata(task: Task, slice_: Slice, result: ImagineResult | None) -> dict[str, DisplayValue]:
    """Build what the user interface shows: prompts by method and axis, rejected texts, and what the asking took.

    Empty if nothing was imagined for the slice.
    """
    history, prompts = slice_.imagination, (*slice_.shipped, *slice_.imagination.prompts)
    if not prompts and result is None:
        return {}
    counts: Counter[tuple[str, str]] = Counter()
    for prompt in prompts:
        counts["method", prompt.method] += 1
        counts.update(prompt.axes.items())
        if prompt.target_label is not None:
            counts["target_label", prompt.target_label] += 1
    shown: dict[str, DisplayValue] = {
        "target": slice_.target or "none",
        "shipped": len(slice_.shipped),
        "imagined": len(history.prompts),
        "retired": history.retired,
        "rejected_duplicates": sum(ended.duplicates for ended in history.rounds),
        "rejected_near_duplicates": sum(ended.near_duplicates for ended in history.rounds),
        "imagined_by": SampleTable(
            [{"axis": axis, "value": value, "prompts": count} for (axis, value), count in sorted(counts.items())]
        ),
    }
    if history.prompts or result is not None:
        shown["terms"] = find_terms(get_imagine_teacher(task)).summary
    return shown | ({"rounds": result.rounds} | result.usage.build_metadata() if result is not None else {})
