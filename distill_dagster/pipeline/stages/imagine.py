"""Within the stage seed_prompts: the prompts that the teacher imagines for a slice with a target."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.pipeline.stages.context import DisplayValue, SampleTable, StageInputs
from distill_dagster.prompts.auxiliary_templates import IMAGINE_TEMPLATES, select_templates
from distill_dagster.tasks import Slice
from distill_dagster.tasks.imagined import get_imagined_path
from distill_dagster.teacher.imagine.ask import ImagineResult, imagine_prompts
from distill_dagster.teacher.imagine.plan import Imaginer, count_imagine_requests, get_imagine_teacher
from distill_dagster.teacher.providers.terms import find_terms


def imagine_for_slice(inputs: StageInputs, key: str, slice_: Slice) -> tuple[Slice, ImagineResult | None]:
    """The slice with what was imagined for it. Asks, and starts a server, only where its target is not reached.

    Raises:
        DistillError: the target is not reached and there is no place for accepted prompts.
        TeacherError: the teacher refuses every request.
    """
    env, folder, task = inputs.env, inputs.env.folder, inputs.env.folder.task
    if not count_imagine_requests(task, slice_).prompts:
        return slice_, None
    if folder.accepted is None:
        raise DistillError(f"{folder.name} was opened without a folder for accepted prompts; nothing can be imagined.")
    own = select_templates(folder.templates(), IMAGINE_TEMPLATES)
    held_out = [*folder.golden, *folder.dev]
    with env.endpoint(get_imagine_teacher(task)) as endpoint:
        imaginer = Imaginer(task, key, slice_, held_out, own, endpoint.identity)
        outcome = imagine_prompts(
            imaginer, get_imagined_path(folder.accepted, key), endpoint, env.store, inputs.account
        )
    return slice_.with_imagined(outcome.imagination), outcome


def build_imagine_record(outcome: ImagineResult | None) -> dict[str, Any]:
    """What the record of seed_prompts keeps of the asking."""
    if outcome is None:
        return {}
    below = {"below_target": outcome.missing} if outcome.missing else {}
    return below | {
        "teacher_calls": outcome.calls,
        "teacher_calls_cached": outcome.cached,
        "spent_usd": outcome.spent_usd,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "model_s": outcome.seconds,
    }


def check_target_reached(slice_: Slice, frame: pl.DataFrame, outcome: ImagineResult | None) -> CheckResult:
    """A warning, and no more: what is missing after all rounds is asked for again only when something changed."""
    target = slice_.target or 0
    found: dict[str, Any] = {"target": slice_.target or "none", "prompts": frame.height}
    if outcome is not None and outcome.missing:
        found |= {"missing": outcome.missing, "rounds": outcome.rounds}
        found["errors"] = "; ".join(f"{n} × {e}" for e, n in Counter(outcome.errors).most_common(5))
    return CheckResult("target_reached", frame.height >= target, "warning", found)


def build_imagine_metadata(
    task: Task, slice_: Slice, frame: pl.DataFrame, outcome: ImagineResult | None
) -> dict[str, DisplayValue]:
    """Counts by method and axis, and what was rejected, for people; nothing where nothing was imagined."""
    imagination = slice_.imagination
    if not imagination.prompts and outcome is None:
        return {}
    by: Counter[tuple[str, str]] = Counter()
    for one in imagination.prompts:
        by["method", one.method] += 1
        by.update((axis, value) for axis, value in one.axes.items())
        if one.target_label is not None:
            by["target_label", one.target_label] += 1
    made: dict[str, DisplayValue] = {
        "target": slice_.target or "none",
        "terms": find_terms(get_imagine_teacher(task)).summary,
        "imagined": len(imagination.prompts),
        "retired": imagination.retired,
        "rejected_duplicates": sum(one.duplicates for one in imagination.rounds),
        "rejected_near_duplicates": sum(one.near_duplicates for one in imagination.rounds),
        "imagined_by": SampleTable(
            [{"axis": axis, "value": value, "prompts": n} for (axis, value), n in sorted(by.items())]
        ),
    }
    if outcome is not None:
        made |= {
            "rounds": outcome.rounds,
            "teacher_calls": outcome.calls,
            "teacher_calls_cached": outcome.cached,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "spent_usd": "unknown" if outcome.spent_usd is None else outcome.spent_usd,
        }
    return made
