"""Say in one line that a file or folder cannot be used: no permission, no space, a file in the place of a folder."""

from __future__ import annotations

import errno
import sqlite3

from distill_dagster.core.paths import Home

_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}
_DATABASE_REASONS = {
    "unable to open database file": "a database in it cannot be opened",
    "attempt to write a readonly database": "a database in it is read-only",
    "database or disk is full": "no space is left on the disk",
}
_REMEDY = "Make it usable for this user, or set DISTILL_HOME to another folder."


def explain_disk_error(error: BaseException) -> str | None:
    """Say what cannot be used, why, and what to do, if that is the cause of an error. None for any other error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _REASONS:
            where = seen.filename if isinstance(seen.filename, str) else Home.from_env().root
            return f"{where} cannot be used: {_REASONS[seen.errno]}. {_REMEDY}"
        if isinstance(seen, sqlite3.OperationalError):
            for message, reason in _DATABASE_REASONS.items():
                if message in str(seen):
                    return f"{Home.from_env().root} cannot be used: {reason}. {_REMEDY}"
        seen = seen.__cause__ or seen.__context__
    return None
