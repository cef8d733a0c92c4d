"""The registry of releases: numbers, the pointer `current`, files that never change, and kills at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.release.registry import Registry, verify_release
from distill_dagster.release.types import Export, LeftOut, Parity

PARITY = Parity("conversion", {"max_difference": 0.01}, {"max_difference": 0.05}, True, "60 prompts, equal.")
EXPORT = Export("onnx", "onnx/model.onnx", ("onnx/model.onnx",), 5, (PARITY,), "onnx")


def fill(folder: Path, number: int) -> dict[str, Any]:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text(f"no. {number}")
    (folder / "README.md").write_text("card")
    left_out = {"name": "onnx-int8", "reason": "It agrees on 0.9 of the prompts."}
    return {"student": "tiny", "exports": [EXPORT.to_dict()], "left_out": [left_out], "notes": []}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "releases")


def test_releases_are_numbered_and_the_newest_is_current(registry: Registry) -> None:
    first, second = registry.publish("triage", fill), registry.publish("triage", fill)
    assert [first.number, second.number] == [1, 2]
    assert registry.read("triage").number == 2
    assert (registry.get_folder("triage") / "current").read_text() == "2\n"
    assert [release.number for release in registry.list_releases("triage")] == [1, 2]
    assert second.exports == (EXPORT,)
    assert second.left_out == (LeftOut("onnx-int8", "It agrees on 0.9 of the prompts."),)
    assert second.bytes == len("no. 2") + len("card")


def test_one_can_roll_back_and_the_next_number_goes_on(registry: Registry) -> None:
    registry.publish("triage", fill)
    registry.publish("triage", fill)
    registry.use("triage", 1)
    assert registry.read("triage").number == 1
    assert registry.publish("triage", fill).number == 3
    with pytest.raises(DistillError, match=r"no release 7. Use one of 1, 2, 3"):
        registry.use("triage", 7)


def test_a_task_without_a_release_says_how_to_make_one(registry: Registry) -> None:
    assert registry.list_releases("triage") == []
    assert registry.read_current_number("triage") is None
    with pytest.raises(DistillError, match="distill release triage"):
        registry.read("triage")


def test_files_are_read_only_and_changes_are_found(registry: Registry) -> None:
    release = registry.publish("triage", fill)
    model = release.path / "onnx" / "model.onnx"
    assert all(path.stat().st_mode & 0o222 == 0 for path in release.path.rglob("*") if path.is_file())
    verify_release(release)
    model.chmod(0o644)
    model.write_text("no. X")
    (release.path / "extra.bin").write_text("")
    (release.path / "README.md").unlink()
    with pytest.raises(DistillError) as error:
        verify_release(release)
    for part in ("extra.bin is not in the manifest", "README.md is missing", "onnx/model.onnx was changed"):
        assert part in str(error.value)
    registry.publish("triage", fill)
    with pytest.raises(DistillError, match="not as it was released"):
        registry.use("triage", 1)
    assert registry.read("triage").number == 2


def test_an_error_leaves_nothing_behind(registry: Registry) -> None:
    def fail(folder: Path, number: int) -> dict[str, Any]:
        fill(folder, number)
        raise DistillError("parity")

    with pytest.raises(DistillError, match="parity"):
        registry.publish("triage", fail)
    assert registry.list_numbers("triage") == []
    assert [path.name for path in registry.get_folder("triage").iterdir()] == [".lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
from distill_dagster.release import registry
from tests.release.test_registry import fill

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "fill":
    def fill(folder, number, fill=fill):
        fill(folder, number)
        die()
else:
    setattr(registry, sys.argv[2], die)
registry.Registry(Path(sys.argv[1])).publish("triage", fill)
"""


@pytest.mark.parametrize(("moment", "numbers"), [("fill", []), ("_make_durable", []), ("write_atomically", [1])])
def test_a_kill_leaves_no_half_release(registry: Registry, moment: str, numbers: list[int]) -> None:
    """Killed while it writes, before the rename, and between the rename and the pointer."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(registry.root), moment], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert registry.list_numbers("triage") == numbers
    for release in registry.list_releases("triage"):
        verify_release(release)
    assert registry.read_current_number("triage") == (1 if numbers else None)
    after = registry.publish("triage", fill)
    assert after.number == len(numbers) + 1
    assert sorted(path.name for path in registry.get_folder("triage").iterdir() if path.is_dir()) == [
        str(number) for number in range(1, after.number + 1)
    ]


def test_what_outlives_a_killed_release_does_not_write_into_the_next_one(registry: Registry) -> None:
    """A converter runs in a process of its own, and a kill of its parent does not end it."""
    folders = []

    def note(folder: Path, number: int) -> dict[str, Any]:
        folders.append(folder)
        return fill(folder, number)

    registry.publish("triage", note)
    registry.publish("triage", note)
    assert folders[0] != folders[1]
    assert not any(folder.exists() for folder in folders)


def test_two_processes_do_not_release_one_task_at_once(registry: Registry) -> None:
    def publish_again(folder: Path, number: int) -> dict[str, Any]:
        with pytest.raises(DistillError, match="Another process is releasing triage"):
            registry.publish("triage", fill)
        return fill(folder, number)

    assert registry.publish("triage", publish_again).number == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("current", "9", "says '9', which is no release of triage"),
        ("current", "²", "says '²', which is no release of triage"),
        ("1/manifest.json", "{", "cannot be read"),
        ("1/manifest.json", '{"format": 99}', "has format 99"),
    ],
)
def test_a_broken_pointer_or_manifest_says_what_to_do(registry: Registry, file: str, text: str, message: str) -> None:
    registry.publish("triage", fill)
    path = registry.get_folder("triage") / file
    path.chmod(0o644)
    path.write_text(text)
    with pytest.raises(DistillError, match=message):
        registry.read("triage")


def test_a_release_without_an_export_names_those_that_it_has(registry: Registry) -> None:
    release = registry.publish("triage", fill)
    assert release.find_export("onnx") == EXPORT
    with pytest.raises(DistillError, match=r"no export 'onnx-int8'. It agrees on 0.9 of the prompts. Use one of onnx"):
        release.find_export("onnx-int8")
