"""`distill drift` and `distill review`: what served requests say, and what users said about answers."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from distill_dagster.cli.console import err, out, print_json, print_problem, show_problems
from distill_dagster.cli.options import JsonOption, QuietOption, TaskArgument, open_task_folder
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import Home

if TYPE_CHECKING:
    from pathlib import Path

    from distill_dagster.intake.feedback_review import WaitingFeedback
    from distill_dagster.tasks import TaskFolder

KEPT = "What was decided is kept; `distill review` goes on with the rest."


def drift(task: TaskArgument = None, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Compare served requests with what the current release was calibrated for. Asks no teacher.

    Exits with code 1 if traffic drifted and it is time to refresh.
    """
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        from distill_dagster.pipeline.open_lake import open_lake
        from distill_dagster.pipeline.served_traffic import measure_traffic_drift

        with show_progress():
            lake = open_lake(home)
            found = measure_traffic_drift(folder, lake, home.models, home.requests / folder.name, home.releases)
        if found is None:
            raise DistillError(f"{folder.name} has no release yet. Make one with `distill release {folder.name}`.")
        colour = "yellow" if found.has_drifted else "green"
        out.print(f"[{colour}]{escape(found.describe(folder.name))}[/{colour}]", soft_wrap=True, highlight=False)
        print_json({"task": folder.name} | found.to_dict())
        if found.has_drifted:
            raise typer.Exit(1)


def review(
    task: TaskArgument = None,
    accept: Annotated[str | None, typer.Option(help="Accept the feedback to this request.")] = None,
    answer: Annotated[
        str | None, typer.Option(help="With --accept: the right answer, if it is another one than the user's.")
    ] = None,
    reject: Annotated[str | None, typer.Option(help="Reject the feedback to this request.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Decide what users' feedback is worth: accepted rows are added to human.jsonl.

    In a terminal it asks about each. Otherwise it lists what waits; --accept and --reject decide about one.
    """
    from distill_dagster.intake.feedback_review import list_waiting_feedback

    home = Home.from_env()
    with show_problems(KEPT):
        folder = open_task_folder(home, task)
        inbox, log = home.inbox / folder.name, home.requests / folder.name
        if answer is not None and accept is None:
            raise DistillError("--answer is for --accept. Give both.")
        if accept is not None and reject is not None:
            raise DistillError("Give --accept or --reject, not both.")
        waiting = list_waiting_feedback(log)
        decided: list[dict[str, Any]] = []
        if (one := accept or reject) is not None:
            found = next((item for item in waiting if item.request_id == one), None)
            if found is None:
                raise DistillError(f"no feedback to {one!r} waits. `distill review {folder.name}` lists what does.")
            _decide(folder, inbox, log, found, accept is not None, answer)
            decided.append({"request_id": one, "decision": "accepted" if accept else "rejected"})
            waiting.remove(found)
            out.print(f"[green]{decided[0]['decision']}[/green] {escape(one)}")
        elif sys.stdin.isatty() and err.is_terminal and not as_json:
            decided = _ask_about_all(folder, inbox, log, waiting)
            waiting = waiting[len(decided) :]
        else:
            for item in waiting:
                out.print(f"{escape(_format(item))}\n", soft_wrap=True, highlight=False)
        accepted = sum(one["decision"] == "accepted" for one in decided)
        if accepted and not folder.task.curation.mix_human:
            out.print("human.jsonl is not part of the dataset: set `curation.mix_human: true` to train on it.")
        out.print(f"{folder.name}: {count_noun(len(waiting), 'row')} to decide about.", highlight=False)
        print_json({"task": folder.name, "waiting": [item.to_dict() for item in waiting], "decided": decided})


def _ask_about_all(folder: TaskFolder, inbox: Path, log: Path, waiting: list[WaitingFeedback]) -> list[dict[str, Any]]:
    """Ask a person about each. What is skipped is asked again next time."""
    decided: list[dict[str, Any]] = []
    for number, item in enumerate(waiting, start=1):
        err.print(f"\n[bold]{number} of {len(waiting)}[/bold]\n{escape(_format(item))}", highlight=False)
        while True:
            typed = typer.prompt("[a]ccept, another [l]abel or answer, [r]eject, [s]kip, [q]uit", "s", err=True)
            choice = str(typed).strip().lower()[:1]
            if choice == "q":
                return decided
            if choice not in "alrs":
                continue
            decision = {"a": "accepted", "l": "accepted", "r": "rejected"}.get(choice, "skipped")
            try:
                other = typer.prompt("The right answer", err=True) if choice == "l" else None
                if choice != "s":
                    _decide(folder, inbox, log, item, decision == "accepted", other)
            except InputError as error:
                for problem in error.problems:
                    print_problem(problem)
                continue
            except DistillError as error:
                err.print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True)
                continue
            decided.append({"request_id": item.request_id, "decision": decision})
            break
    return decided


def _decide(
    folder: TaskFolder, inbox: Path, log: Path, item: WaitingFeedback, accepted: bool, answer: str | None
) -> None:
    from distill_dagster.intake.feedback_review import accept_feedback, reject_feedback

    if not accepted:
        reject_feedback(log, item)
        return
    inbox.mkdir(parents=True, exist_ok=True)
    accept_feedback(folder, inbox, log, item, None if answer is None else _read_typed(folder, answer))


def _read_typed(folder: TaskFolder, answer: str) -> Any:
    """A typed answer: a label or a text as it is, JSON where the kind's answers are JSON."""
    if folder.task.has_labels:
        return answer
    try:
        return json.loads(answer)
    except ValueError:
        return answer


def _format(item: WaitingFeedback) -> str:
    verdict = {True: "right", False: "wrong", None: "no verdict"}[item.is_right]
    fields = {
        "request": item.text,
        "served": _show(item.served),
        "user": f"{verdict}{'' if item.proposed is None else f'; {_show(item.proposed)}'}",
        **({"note": item.note} if item.note else {}),
    }
    lines = [f"  {name + ':':<9}{_show_safely(value)}" for name, value in fields.items()]
    return "\n".join([f"{item.request_id}  {item.at}", *lines])


def _show(answer: Any) -> str:
    if answer is None:
        return "unknown"
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def _show_safely(text: str) -> str:
    """A stranger's text: its lines are indented, and characters that could steer a terminal are visible."""
    lines = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in text.split("\n"))
    return f"\n{' ' * 11}".join(lines)
