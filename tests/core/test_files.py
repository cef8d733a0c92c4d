"""Files: a crash at any point leaves the old content or the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_dagster.core import files
from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.core.files import (
    append_durably,
    lock_file,
    refuse_symlink,
    restore_folder,
    swap_folder,
    write_atomically,
)


def make_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(text)
    return path


def swap_and_die(new: Path, target: Path, renames: int) -> None:
    """Swap in a process that is killed after so many renames."""
    code = f"""
import os, sys
from pathlib import Path
from distill_dagster.core.files import swap_folder
real, count = Path.rename, 0
def rename(self, target):
    global count
    if count == {renames}:
        os._exit(9)
    count += 1
    return real(self, target)
Path.rename = rename
swap_folder(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(new), str(target)], check=False)
    assert done.returncode == (9 if renames < 2 else 0)


@pytest.mark.parametrize(("renames", "text"), [(0, "old"), (1, "old"), (2, "new")])
def test_a_folder_survives_a_kill_at_every_rename(tmp_path: Path, renames: int, text: str) -> None:
    target = make_folder(tmp_path / "tiny", "old")
    swap_and_die(make_folder(tmp_path / "new", "new"), target, renames)
    assert restore_folder(target) == (renames == 1)
    assert (target / "weights").read_text() == text
    swap_folder(make_folder(tmp_path / "third", "third"), target)
    assert (target / "weights").read_text() == "third"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "leftovers are removed"


def test_a_folder_that_a_reader_restores_during_a_swap_is_moved_aside_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_folder(tmp_path / "tiny", "old")
    real = Path.rename
    restored: list[bool] = []

    def rename(self: Path, to: Path) -> Path:
        if self.name == "new" and not restored:
            restored.append(restore_folder(target))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    swap_folder(make_folder(tmp_path / "new", "new"), target)
    assert restored == [True]
    assert (target / "weights").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_nothing_is_restored_where_nothing_was(tmp_path: Path) -> None:
    assert not restore_folder(tmp_path / "none" / "tiny")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("data", ["Ü\n", b"\x00\xff"])
def test_a_write_replaces_the_file_and_follows_no_link(tmp_path: Path, data: str | bytes) -> None:
    target = tmp_path / "a" / "b" / "file"
    write_atomically(target, "old")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    target.unlink()
    target.symlink_to(elsewhere)
    write_atomically(target, data)
    assert target.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert elsewhere.read_text() == "kept"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("before", "keep_until", "after"),
    [
        (None, None, "new\n"),
        ("", None, "new\n"),
        ("a\n", None, "a\nnew\n"),
        ("a", None, "a\nnew\n"),
        ("a\nhal", 2, "a\nnew\n"),
        ("a\nhal", 0, "new\n"),
    ],
)
def test_lines_are_appended_behind_what_is_kept(
    tmp_path: Path, before: str | None, keep_until: int | None, after: str
) -> None:
    path = tmp_path / "new" / "folder" / "lines.jsonl"
    if before is not None:
        path.parent.mkdir(parents=True)
        path.write_text(before)
    append_durably(path, b"new\n", keep_until)
    assert path.read_text() == after


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    refuse_symlink(tmp_path)
    with pytest.raises(InputError, match="symbolic links are not followed"):
        refuse_symlink(tmp_path, link)
    with pytest.raises(OSError, match="link"):
        append_durably(link, b"x\n")
    assert not (tmp_path / "target").exists()


def test_a_lock_says_what_to_do_where_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "locks" / ".lock"
    code = "import sys, filelock; held = filelock.FileLock(sys.argv[1]); held.acquire(); print(); input()"
    path.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(DistillError, match="Wait for it"), lock_file(path, 0, "Busy. Wait for it."):
            pass
        other.stdin.write(b"\n")
        other.stdin.close()
        other.wait()
    with lock_file(path, 0):
        pass
