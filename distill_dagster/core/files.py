"""Write, append, swap and lock files so that a crash leaves the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from distill_dagster.core.errors import DistillError, InputError, Problem

SWAP_ATTEMPTS = 100
"""So often may a reader put the old folder back while a new one is moved in."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file, durable when this returns. A reader sees the old content or the new one.

    Missing folders are created. A string is written as UTF-8. A symbolic link at `path` is replaced, not followed.
    """
    created = _create_folder(path.parent)
    temporary = get_temporary_path(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, 0o644), "wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for folder in (path.parent, *created):
        sync_folder(folder)


def append_durably(path: Path, data: bytes, keep_until: int | None = None) -> None:
    """Append whole lines to a file, durable when this returns. The caller holds a lock: one writer at a time.

    Missing folders are created. If the kept content does not end with a line break, one is added.

    Args:
        data: the lines, each with its line break.
        keep_until: the number of bytes to keep; what follows them is removed first, such as a line that a killed
            process left unfinished. By default everything is kept.

    Raises:
        OSError: `path` is a symbolic link, or cannot be written.
    """
    created = _create_folder(path.parent)
    is_new = not path.exists()
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b") as handle:
        if keep_until is not None:
            handle.truncate(keep_until)
        size = handle.seek(0, os.SEEK_END)
        if size:
            handle.seek(size - 1)
            data = data if handle.read(1) == b"\n" else b"\n" + data
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    if is_new:
        for folder in (path.parent, *created):
            sync_folder(folder)


def swap_folder(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`, and delete what was there.

    A process that is killed between the two renames leaves the old folder under a hidden name. `restore_folder` puts
    it back, and the next swap removes what is left over.
    """
    if target.exists():
        _remove_leftovers(target)
    for left in reversed(range(SWAP_ATTEMPTS)):
        old = target.with_name(f"{_OLD.format(name=target.name)}{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            new.rename(target)
            break
        except OSError:
            # A reader may have restored the old folder between the two renames: then move it aside again.
            if left and target.exists() and new.exists():
                continue
            restore_folder(target)
            raise
    _remove_leftovers(target)


def link_files(source: Path, target: Path, leave_out: Collection[str] = ()) -> None:
    """Put the files of a folder, at any depth, into an existing folder: as hard links if possible, else as copies.

    The two share their content, so only files that are replaced and never changed in place may be linked.
    """

    def link(from_: str, to: str) -> None:
        try:
            os.link(from_, to)
        except OSError:  # another file system, or one without links
            shutil.copyfile(from_, to)

    ignore = shutil.ignore_patterns(*leave_out)
    shutil.copytree(source, target, ignore=ignore, copy_function=link, dirs_exist_ok=True)


def restore_folder(target: Path) -> bool:
    """Put back a folder that a killed `swap_folder` left under its hidden name. Returns whether it did.

    It is safe while another process swaps: that one moves the folder aside again.
    """
    if target.exists():
        return False
    for old in _find_leftovers(target):
        with contextlib.suppress(OSError):
            old.rename(target)
            return True
    return False


_OLD = ".{name}.old-"


def _find_leftovers(target: Path) -> list[Path]:
    return sorted(target.parent.glob(glob.escape(_OLD.format(name=target.name)) + "*"))


def _remove_leftovers(target: Path) -> None:
    for old in _find_leftovers(target):
        shutil.rmtree(old, ignore_errors=True)


def get_temporary_path(path: Path) -> Path:
    """A hidden name next to `path` to write under before a rename. Two processes never share one."""
    return path.with_name(f".{path.name}.writing-{os.getpid()}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents. Returns the folders whose list of names changed."""
    changed = []
    missing = folder
    while not missing.exists():
        missing = missing.parent
        changed.append(missing)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def refuse_symlink(*paths: Path) -> None:
    """Check that none of the paths is a symbolic link.

    Raises:
        InputError: one is.
    """
    problems = [make_symlink_problem(path) for path in paths if path.is_symlink()]
    if problems:
        raise InputError(problems)


def make_symlink_problem(path: Path) -> Problem:
    """The problem that `refuse_symlink` raises, for callers that collect problems."""
    return Problem(path, "symbolic links are not followed.", "Put the file or folder itself there.")


@contextlib.contextmanager
def lock_file(path: Path, timeout_s: float = -1, busy: str | None = None) -> Iterator[None]:
    """Hold a lock across processes within this block. The system frees it when its process ends, however it ends.

    Args:
        path: the lock file; its folder is created.
        timeout_s: how long to wait for another process, in seconds; by default without a limit.
        busy: the error's message, which says what to do.

    Raises:
        DistillError: another process still holds the lock after `timeout_s`.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise DistillError(busy or f"Another process holds {path}. Wait for it to end, then try again.") from None
    try:
        yield
    finally:
        lock.release()
