"""`distill tune`: search better settings of a student, and propose them as a change of task.yaml."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, out, print_json, print_table, show_problems
from distill_dagster.cli.options import JsonOption, QuietOption, TaskName, choose_students, open_task_folder
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import format_seconds
from distill_dagster.core.paths import Home, get_tuning_folder

KEPT = "Finished trials are kept. The same command goes on with them."
TOP_TRIALS = 5
DEFAULT_TRIALS = 20


def tune(
    task: TaskName,
    student: Annotated[str, typer.Argument(help="The student, as it is named in task.yaml.")],
    trials: Annotated[
        int | None,
        typer.Option(min=1, help=f"Trials in all, with those of earlier commands; by default {DEFAULT_TRIALS}."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="Tune only this setting: `lora.rank`, `lora.rank=4,8`, `learning_rate=1e-4..1e-2`. Can be repeated."
        ),
    ] = None,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply",
            help="Write the best settings into task.yaml. Without `--trials` and `--search`, those of the trials that "
            "are there: no further one runs.",
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Try settings of a student on its dataset, score each on dev, and propose the best ones as a change of task.yaml.

    The first trial has the settings of task.yaml. Trials that do worse than the others are ended early. Golden is not
    read. Asks no teacher: run the task first.
    """
    from distill_dagster.tuning.page import TuningResult
    from distill_dagster.tuning.proposal import apply_proposal
    from distill_dagster.tuning.search_space import format_settings
    from distill_dagster.tuning.study import FinishedTrial
    from distill_dagster.tuning.tune import tune_student

    def print_summary(result: TuningResult) -> None:
        best = sorted((trial for trial in result.trials if trial.result), key=lambda t: t.rank, reverse=True)
        table = build_table("trial", result.metric, "loss", "settings", numbers=("trial", result.metric, "loss"))
        for trial in best[:TOP_TRIALS]:
            assert trial.result is not None
            loss = "–" if trial.result.loss is None else f"{trial.result.loss:.3f}"
            mark = " (task.yaml)" if trial == result.current else ""
            settings = format_settings(trial.settings) + mark
            table.add_row(str(trial.number), f"{trial.result.score:.3f}", loss, settings)
        if best:
            print_table(table)
        out.print(escape(result.summary), soft_wrap=True, highlight=False)

    home = Home.from_env()
    with show_problems(KEPT):
        folder = open_task_folder(home, task)
        choose_students(folder, [student])
        with show_progress() as display:

            def show_trial(trial: FinishedTrial) -> None:
                found = f"{trial.result.score:.3f}" if trial.result else trial.error or trial.state
                took = f"  {format_seconds(trial.result.seconds)}" if trial.result else ""
                display.print_line(f"trial {trial.number}: {found}  {format_settings(trial.settings)}{took}")

            count = trials or (None if apply and not search else DEFAULT_TRIALS)
            result = tune_student(home, folder, student, search or [], count, show_trial)
        print_summary(result)
        proposal, applied = result.proposal, False
        if proposal is not None and proposal.diff:
            out.print(escape(proposal.diff), soft_wrap=True, highlight=False)
            if apply:
                apply_proposal(folder, proposal)
                applied = True
                out.print(f"{proposal.path} is changed. Train with `distill run {folder.name}`.", soft_wrap=True)
            else:
                out.print(f"`distill tune {folder.name} {student} --apply` makes this change.", soft_wrap=True)
        page = get_tuning_folder(home.reports, folder.name) / f"{student}.html"
        out.print(f"All trials: {page}", soft_wrap=True, highlight=False)
        print_json(_build_json(result) | {"applied": applied, "page": str(page)})
        if result.best is None:
            raise DistillError("No trial could be completed. The page says why.")


def _build_json(result: Any) -> dict[str, Any]:
    def describe(trial: Any) -> dict[str, Any] | None:
        if trial is None:
            return None
        return {
            "trial": trial.number,
            "score": trial.result.score,
            "loss": trial.result.loss,
            "settings": trial.settings,
        }

    states = [trial.state for trial in result.trials]
    return {
        "task": result.task,
        "student": result.student,
        "metric": result.metric,
        "split": result.split,
        "items": result.items,
        "trials": {state: states.count(state) for state in ("complete", "pruned", "failed")},
        "best": describe(result.best),
        "current": describe(result.current),
        "lead": asdict(result.lead) if result.lead else None,
        "diff": result.proposal.diff if result.proposal else "",
    }
