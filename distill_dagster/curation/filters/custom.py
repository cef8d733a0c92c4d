"""The user's own filters: a SQL expression in task.yaml, or a class of an installed package."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from distill_dagster.curation.filters.base import Filter
from distill_dagster.curation.filters.sql import SqlFilter, find_sql_columns

FILTER_ENTRY_POINTS = "distill_dagster.filters"
FILTER_NAME_PATTERN = r"^[a-z][a-z0-9_]{0,40}$"


class CustomFilterSpec(BaseModel):
    """An entry of `curation.filters.own`: `name` with `sql`, or `use` with `settings`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=FILTER_NAME_PATTERN)] | None = Field(
        default=None, description="also the drop reason of its rows; small letters, digits and _"
    )
    sql: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None, description="one expression in DuckDB's SQL that is true for the rows to keep"
    )
    use: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description=f"a class of an installed package: an entry point in the group {FILTER_ENTRY_POINTS}"
    )
    settings: dict[str, Any] = Field(default={}, description="settings of the class")

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(FILTER_NAME_PATTERN, value):
            raise ValueError(f"a name matches {FILTER_NAME_PATTERN}")
        return value

    @field_validator("sql")
    @classmethod
    def _check_sql(cls, value: str | None) -> str | None:
        if value is not None:
            find_sql_columns(value)
        return value

    @model_validator(mode="after")
    def _check_entry(self) -> CustomFilterSpec:
        if (self.sql is None) == (self.use is None):
            raise ValueError("a filter of your own has either `sql` or `use`")
        if self.sql is not None and (self.name is None or self.settings):
            raise ValueError("a filter with `sql` needs a `name`, and has no `settings`")
        if self.use is not None:
            self.build_filter()
        return self

    def build_filter(self) -> Filter:
        """The filter of this entry.

        Raises:
            ValueError: no installed package has that class, or its settings are wrong.
        """
        if self.sql is not None:
            return SqlFilter(label=self.name or "", sql=self.sql)
        found = {entry.name: entry for entry in metadata.entry_points(group=FILTER_ENTRY_POINTS)}
        if self.use not in found:
            raise ValueError(
                f"no installed package has a filter {self.use!r} (entry points of the group {FILTER_ENTRY_POINTS}: "
                f"{', '.join(sorted(found)) or 'none'})"
            )
        try:
            made = found[self.use].load()(**self.settings)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"settings.{field}: {first['msg']}") from None
        except Exception as error:
            raise ValueError(f"the filter {self.use!r} could not be loaded: {error}") from error
        if not isinstance(made, Filter):
            raise ValueError(f"{self.use!r} is not a subclass of distill_dagster.curation.filters.Filter")
        return made

    def hash_fields(self) -> dict[str, Any]:
        """The settings and, for a class, the version of its package, for the hash of the curation settings."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        if self.use is not None:
            entries = {entry.name: entry for entry in metadata.entry_points(group=FILTER_ENTRY_POINTS)}
            package = entries[self.use].dist
            fields["version"] = package.version if package is not None else None
        return fields
