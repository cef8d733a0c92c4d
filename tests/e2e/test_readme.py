"""Every command of the README's section "Keep a project up to date", as a person types it, on a small task."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from distill_dagster.core.paths import PROJECT_FOLDER
from tests.e2e.project import TASK, Project
from tests.support.provider import FakeProvider

NAMES = {"support_triage": TASK, "my_task": TASK, "desktop-app": "web", "reports": "web", "api": "shop"}
ELSEWHERE = {
    "dagster job backfill -j support_triage_slices --partitions api,reports --noprompt": "tests/ui, which has a daemon",
    "make setup-postgres": "tests/services",
    "export DISTILL_POSTGRES_URL='postgresql://user:password@host/database'": "tests/services",
}


def commands() -> list[str]:
    """The section's indented lines, without comments, and the commands within its text."""
    section = re.split(r"^## ", (PROJECT_FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.M)
    text = next(part for part in section if part.startswith("Keep a project up to date"))
    lines = re.findall(r"^    (\S.*)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    typed = [re.split(r"\s+#", line)[0].strip() for line in lines]
    return [*dict.fromkeys([*typed, *re.findall(r"`(distill \w+ [^`…]+)`", text)])]


def test_every_command_of_living_with_it_works(project: Project, provider: FakeProvider) -> None:
    found = commands()
    assert len(found) > 12
    assert set(ELSEWHERE) <= set(found), "a command that is tested elsewhere is no longer in the README"
    project.change_slice("shop", lambda value: value["seeds"].append("one more refund"))
    shell: list[str] = []
    for command in found:
        if command in ELSEWHERE:
            continue
        for name, ours in NAMES.items():
            command = re.sub(rf"(?<![\w-]){name}(?![\w-])(?!_)|{name}(?=_slices)", ours, command)
        program, *arguments = shlex.split(command)
        if program == "distill":
            if "--student" not in arguments and arguments[0] == "refresh":
                arguments += ["--student", "one"]  # the small task has two; one is enough here
            ended = project.distill(*arguments)
            assert ended.code == 0, f"{command}\n{ended.err}"
        else:
            shell.append(command)
    assert provider.texts == ["one more refund"] * 2, "asked once, whatever ran afterwards"
    assert [line.split()[0] for line in shell] == ["eval", "dg", "dg", "dg"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"} | project.environment(PATH=path)
    # The same command whether or not the package is installed.
    distill = f'distill() {{ {sys.executable} -m distill_dagster "$@"; }}'
    script = "\n".join(["set -e", distill, *shell])
    done = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT_FOLDER, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
