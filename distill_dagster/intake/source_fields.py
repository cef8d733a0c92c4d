"""Find the id and the slice of a record."""

from __future__ import annotations

from distill_dagster.config import SLICE_KEY_PATTERN
from distill_dagster.core.slugs import slugify
from distill_dagster.intake.import_options import ImportLog, ImportOptions
from distill_dagster.intake.row_files import SourceRecord, get_by_path


def find_id(record: SourceRecord, field: str | None) -> str | None:
    """The id of a record in its field, by default `id`; None if it has none."""
    id_ = get_by_path(record.value, field or "id")
    if isinstance(id_, float) and id_.is_integer():  # pandas, in a column with gaps
        id_ = int(id_)
    return str(id_).strip() or None if isinstance(id_, str | int) and not isinstance(id_, bool) else None


def find_slice(record: SourceRecord, options: ImportOptions, log: ImportLog) -> str | None:
    """The slice of the command, or else the one that a record names in `--slice-field`."""
    if options.slice_field is None:
        return options.slice
    key = get_by_path(record.value, options.slice_field)
    key = str(key) if isinstance(key, int) and not isinstance(key, bool) else key
    if key is None or (isinstance(key, str) and not key.strip()):
        return None
    if isinstance(key, str) and options.slugify:
        key = slugify(key) or key
    if isinstance(key, str) and SLICE_KEY_PATTERN.fullmatch(key.strip()):
        return key.strip()
    message = f"{str(key)[:60]!r} cannot be a slice."
    remedy = f"Use a name that matches {SLICE_KEY_PATTERN.pattern}, or let --slugify make one, or give --slice."
    log.refuse(record, record.make_problem(message, remedy, options.slice_field))
    return None
