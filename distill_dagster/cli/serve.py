"""`distill serve`: answer requests with a released student."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.markup import escape

from distill_dagster.cli.console import err, out, show_problems
from distill_dagster.cli.options import TaskArgument, open_task_folder
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.database_urls import get_store_url
from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.shared_releases import complete_release, pull_releases
from distill_dagster.release.registry import Registry, verify_release


def serve(
    task: TaskArgument = None,
    release: Annotated[int | None, typer.Option(help="The release to serve. Default: the current one.")] = None,
    export: Annotated[
        str | None, typer.Option(help="The export to answer from, such as onnx-int8 or gguf-q8_0. Default: the best.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = 8000,
    fallback: Annotated[
        bool, typer.Option("--fallback/--no-fallback", help="Ask the teacher where the student is unsure.")
    ] = True,
) -> None:
    """Serve a released student: OpenAI's chat completions, and `/v1/classify` for labels.

    Below the confidence threshold of the release the teacher answers, through the store and the budget of the task.
    Requests are logged in `requests/<task>`, masked. Ctrl-C stops the server once requests under way are answered.
    """
    from distill_dagster.pipeline.served_teacher import ServedTeacher
    from distill_dagster.serving.run import build_server, open_listener, plan_serving, read_api_key, run_server
    from distill_dagster.teacher.completions.store import open_store

    home = Home.from_env()
    with show_problems(), ExitStack() as stack:
        folder = open_task_folder(home, task)
        registry, lake = Registry(home.releases), open_lake(home)
        pull_releases(lake, registry, folder.name)
        with show_progress():
            complete_release(lake, registry, folder.name, release)
        chosen = registry.read(folder.name, release)
        err.print(f"[dim]checking the files of release {chosen.number}[/dim]")
        verify_release(chosen)
        plan = plan_serving(chosen, home.models, export, fallback)
        if plan.setup.label_names != folder.task.label_names:
            raise DistillError(
                f"Release {chosen.number} has other labels than task.yaml. Release again with `distill release "
                f"{folder.name}`, or serve with the labels that it was released with."
            )
        key = read_api_key(folder.task.serving, host)
        listener = stack.enter_context(open_listener(host, port))
        teacher = None
        if plan.needs_teacher:
            err.print("[dim]opening the teacher[/dim]")
            store = stack.enter_context(open_store(home.store, get_store_url()))
            try:
                teacher = ServedTeacher(folder, home, store)
            except DistillError as error:
                raise DistillError(f"{error} Or serve the student alone with --no-fallback.") from error
        err.print(f"[dim]loading {chosen.student} from {plan.export}[/dim]")
        try:
            server = build_server(plan, folder.task, home.requests / folder.name, teacher, key)
        except BaseException:
            if teacher is not None:
                teacher.close()
            raise

        def announce(address: str) -> None:
            name, first = folder.name, folder.task.item.lower()
            out.print(f"{name}: release {chosen.number} of {chosen.student}, export {plan.export}.", highlight=False)
            out.print(plan.describe_routing(), highlight=False, soft_wrap=True)
            out.print(f"It answers on {address}/v1. Try:", highlight=False)
            body = {"model": name, "messages": [{"role": "user", "content": f"Your {first}"}]}
            header = f" -H 'authorization: Bearer '\"${folder.task.serving.api_key_env}\"" if key else ""
            command = f"  curl {address}/v1/chat/completions{header} -d '{json.dumps(body)}'"
            out.print(escape(command), highlight=False, soft_wrap=True)
            state = f"State: {address}/health and {address}/metrics. Press Ctrl-C to stop."
            out.print(state, highlight=False, soft_wrap=True)

        run_server(server, listener, announce)
        out.print("The server has stopped.")
