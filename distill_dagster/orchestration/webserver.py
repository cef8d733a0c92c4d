"""Dagster's webserver with two more folders: `/reports` and `/data-docs`, so that the UI can link to a report.

`distill ui` starts it as `python -m distill_dagster.orchestration.webserver`, with the options of `dagster-webserver`.
"""

from __future__ import annotations

from typing import Any

from dagster._core.workspace.context import BaseWorkspaceRequestContext, IWorkspaceProcessContext
from dagster_webserver import cli
from dagster_webserver.webserver import DagsterWebserver
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from distill_dagster.core.paths import DATA_DOCS_URL, REPORTS_URL, Home

# Reports quote texts of users and models. They are escaped; should one get through, it can reach nothing from here.
_POLICY = (
    "sandbox allow-popups allow-scripts; default-src 'none'; img-src data:; font-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


class PageFiles(StaticFiles):
    """Serves a folder of HTML pages that may not load or call anything."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Cache-Control"] = "no-cache"
        return response


class Webserver(DagsterWebserver[IWorkspaceProcessContext, BaseWorkspaceRequestContext]):
    """Dagster's webserver, which serves the reports and the Data Docs of the home folder too."""

    def build_routes(self) -> list[BaseRoute]:
        home = Home.from_env()
        folders = {REPORTS_URL: home.reports, DATA_DOCS_URL: home.data_docs}
        pages = [Mount(url, PageFiles(directory=folder, html=True, check_dir=False)) for url, folder in folders.items()]
        return [*pages, *super().build_routes()]


def _create_app(
    context: IWorkspaceProcessContext, path_prefix: str = "", live_data_poll_rate: int | None = None, **more: Any
) -> Starlette:
    return Webserver(context, path_prefix, live_data_poll_rate).create_asgi_app(**more)


def run_webserver() -> None:
    """Run Dagster's command with this app: it has no option for further routes."""
    cli.create_app_from_workspace_process_context = _create_app
    cli.main()


if __name__ == "__main__":
    run_webserver()
