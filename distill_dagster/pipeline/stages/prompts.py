"""The stages prompt_context and seed_prompts: everything that is known before a teacher is asked for answers."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.checks import CheckResult
from distill_dagster.pipeline.stages import imagine
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    StageContext,
    StageInputs,
    StageResult,
    build_held_out_table,
    sample_rows,
)
from distill_dagster.pipeline.stages.gate import require_passed_gate
from distill_dagster.prompts.few_shot import build_prompt_context
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tables.validation import check_table
from distill_dagster.tasks import LabelledRow


def make_prompt_context(env: StageContext, partition: str | None) -> StageResult:
    """Build the pool of few-shot examples, without duplicates and without rows that repeat golden or dev.

    Reads: examples.jsonl, and golden.jsonl and dev.jsonl to find leaks.
    Writes: PROMPT_CONTEXT.
    Asks a teacher: no.
    Re-runs when: human_examples or golden_set changes.
    """
    inputs = StageInputs(env, "prompt_context", partition)
    inputs.note_source("human_examples")
    held_out, examples, task = inputs.read_held_out_keys(), env.folder.examples, env.folder.task
    leaking = _find_leaking_examples(env, examples)
    frame = build_prompt_context(examples, held_out, leaking)
    removed = frame.filter(pl.col("removed").is_not_null())
    reasons = ", ".join(f"{id_} ({reason})" for id_, reason in removed.select("id", "removed").iter_rows())
    no_row_removed = CheckResult("no_row_removed", not removed.height, "warning", {"removed": reasons})
    checks = [check_table("prompt_context", frame), no_row_removed]
    record = inputs.write_table(frame, checks)
    answer = "answer" if task.has_written_answers else "label"
    sample = sample_rows(frame.filter(pl.col("removed").is_null()), ["id", "text", answer])
    return StageResult(record, {"rows": frame.height, "removed": removed.height, "sample": sample}, checks)


def _find_leaking_examples(env: StageContext, examples: list[LabelledRow]) -> frozenset[str]:
    """The ids of examples that contain a golden or dev row, or nearly equal one."""
    from distill_dagster.curation.dedup.decontaminate import find_contamination  # loads NumPy and pyarrow

    schema = {"id": pl.String, "text": pl.String}
    rows = pl.DataFrame([(row.id, row.text) for row in examples], schema=schema, orient="row")
    return frozenset(find_contamination(rows, build_held_out_table(env.folder), limits=env.limits).ids)


def make_seed_prompts(env: StageContext, partition: str | None) -> StageResult:
    """Collect the prompts of one slice, and imagine more of them up to its target.

    Reads: the slice file, accepted and imagined prompts; to imagine also teacher_gate, and golden and dev to hide them.
    Writes: PROMPTS.
    Asks a teacher: only in tasks with `imagine`, for slices below their target.
    Re-runs when: slice_files or teacher_settings changes; with `imagine` also imagine_settings or the gate.
    """
    assert partition is not None
    inputs = StageInputs(env, "seed_prompts", partition)
    inputs.note_source("teacher_settings")
    inputs.note_source("slice_files", partition)
    if env.folder.task.imagine is not None:
        require_passed_gate(inputs)
        inputs.note_source("imagine_settings")
    slice_, imagined = imagine.imagine_for_slice(inputs, partition, env.folder.read_slice(partition))
    frame = build_seed_prompts(partition, slice_, answers=not env.folder.task.has_labels)
    checks = [check_table("seed_prompts", frame), imagine.check_target_reached(slice_, frame, imagined)]
    missing, usage = (imagined.missing_rows, imagined.usage) if imagined else (0, None)
    record = inputs.write_table(frame, checks, missing, usage, **imagine.build_imagine_record(imagined))
    sample = sample_rows(frame.sort(pl.col("origin") != "synthetic"), ["prompt_id", "origin", "target_label", "axes"])
    shown: dict[str, DisplayValue] = {"rows": frame.height, "description": slice_.description, "sample": sample}
    return StageResult(record, shown | imagine.build_imagine_metadata(env.folder.task, slice_, imagined), checks)
