"""A provider's terms on training another model with its answers: what they say, and where that was read.

The quotations are in `terms.yaml` next to this file. A task may add its own (`teacher.terms`). This is not legal
advice: read the terms, and take responsibility for the use.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field

from distill_dagster.config import TeacherSpec
from distill_dagster.core.checks import CheckResult, CheckSpec
from distill_dagster.core.errors import TermsError

TERMS_FILE = Path(__file__).with_name("terms.yaml")
OPENAI_HOST = "api.openai.com"
ModelRole = Literal["teacher", "imaginer", "judge"]
"""What a model does for a dataset: answers, writes its prompts, or scores and picks answers."""
_OPENAI_PREFIXES = ("openai", "text-completion-openai")
"""Prefixes that with another address than OpenAI's only mean an OpenAI-compatible server."""
TERMS_REMEDY = (
    "Read the quoted terms where they are published. If you may train with the answers, write "
    "`terms: {acknowledged: true}` under `teacher` in task.yaml; otherwise choose another teacher."
)
UNKNOWN_TERMS_REMEDY = (
    "Read the provider's terms or the model's licence, and write what they say under `teacher.terms` in task.yaml: "
    "restricts, url, quote, date_read; or `acknowledged: true` alone."
)


class TermsClause(BaseModel):
    """One quotation. The provider publishes it at `url`; the copy at `source` was read on `date_read`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    document: str
    dated: str | None
    url: str
    source: str
    quote: Annotated[str, Field(min_length=10)]
    date_read: date


class TermsEntry(BaseModel):
    """An entry of terms.yaml, whose comment explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    restricts: Literal["yes", "no"]
    providers: list[str] = []
    models: str | None = None
    clauses: Annotated[list[TermsClause], Field(min_length=1)]
    remark: str | None = None

    def matches(self, provider: str, model: str) -> bool:
        """Whether the terms apply to a model, by its provider or by its own name. Both are in lower case."""
        return provider in self.providers or (self.models is not None and re.search(self.models, model) is not None)


@dataclass(frozen=True)
class ProviderTerms:
    """What is known about the terms of one teacher. `declared_in` is None if nothing is known."""

    teacher: str
    restricts: Literal["yes", "no", "unknown"]
    acknowledged: bool
    wants_acknowledgement: bool
    declared_in: Literal["table", "task.yaml"] | None
    provider: str | None
    clauses: tuple[dict[str, str | None], ...]
    remark: str | None
    note: str | None

    @property
    def blocks_asking(self) -> bool:
        """Whether the teacher must not be asked before the task acknowledges its terms."""
        return self.wants_acknowledgement and not self.acknowledged

    @property
    def summary(self) -> str:
        """One sentence for reports and messages."""
        if self.restricts == "unknown":
            unknown = f"The terms of {self.teacher} on training with its answers are not known here"
            return f"{unknown}; the task acknowledges them." if self.acknowledged else f"{unknown}."
        owner = f"{self.provider} ({self.teacher})" if self.provider else self.teacher
        source = ", as task.yaml states" if self.declared_in == "task.yaml" else ""
        if self.restricts == "no":
            return f"The terms of {owner} do not restrict training with its answers{source}."
        state = "the task acknowledges it" if self.acknowledged else "the task does not acknowledge it"
        return f"The terms of {owner} restrict training with its answers{source}; {state}."

    def to_json(self, role: ModelRole = "teacher") -> dict[str, Any]:
        """Plain JSON values for metrics.json, metadata and release cards, with the role of the model."""
        value = asdict(self) | {"summary": self.summary, "clauses": [dict(clause) for clause in self.clauses]}
        return {"role": role} | {name: value[name] for name in ("summary", *asdict(self))}


@cache
def load_terms_table() -> tuple[TermsEntry, ...]:
    """Read all entries of terms.yaml."""
    return tuple(TermsEntry.model_validate(row) for row in yaml.safe_load(TERMS_FILE.read_text(encoding="utf-8")))


def find_terms_entry(spec: TeacherSpec) -> TermsEntry | None:
    """Find the entry for a teacher, by litellm's prefix or by the model's name, which counts on every host.

    If several entries match, one that restricts wins. A Gemma model behind the Gemini API, for example, matches two.
    """
    provider, _, rest = spec.model.partition("/")
    provider, model = (provider, rest) if rest else ("", spec.model)
    is_own = spec.has_no_server or (spec.api_base and urlsplit(spec.api_base).hostname != OPENAI_HOST)
    if provider in _OPENAI_PREFIXES and is_own:
        provider = ""
    matching = [entry for entry in load_terms_table() if entry.matches(provider.lower(), model.lower())]
    return next((entry for entry in matching if entry.restricts == "yes"), matching[0] if matching else None)


def find_terms(spec: TeacherSpec) -> ProviderTerms:
    """Find a teacher's terms. A statement of the task takes precedence over the table, because it is newer.

    If the table knows a restriction, the task must acknowledge it even if it states that there is none.
    """
    stated, entry = spec.terms, find_terms_entry(spec)
    needs_acknowledgement = stated.restricts == "yes" or (entry is not None and entry.restricts == "yes")
    common: dict[str, Any] = {
        "teacher": spec.model,
        "acknowledged": stated.acknowledged,
        "wants_acknowledgement": needs_acknowledgement,
        "provider": entry.name if entry else None,
        "note": stated.note,
    }
    if stated.restricts is not None:
        clause = {"document": None, "dated": None, "url": stated.url, "source": stated.url, "quote": stated.quote}
        clauses = (clause | {"date_read": str(stated.date_read)},)
        return ProviderTerms(
            restricts=stated.restricts, declared_in="task.yaml", clauses=clauses, remark=None, **common
        )
    if entry is None:
        return ProviderTerms(restricts="unknown", declared_in=None, clauses=(), remark=None, **common)
    quoted = tuple(clause.model_dump(mode="json") for clause in entry.clauses)
    return ProviderTerms(restricts=entry.restricts, declared_in="table", clauses=quoted, remark=entry.remark, **common)


def check_terms(*specs: TeacherSpec) -> list[CheckResult]:
    """Run the checks `terms_acknowledged` (blocking) and `terms_known` (a warning) on all teachers of a task."""
    all_terms = [find_terms(spec) for spec in specs]
    stopped = [terms for terms in all_terms if terms.blocks_asking]
    unclear = [terms for terms in all_terms if terms.restricts == "unknown" and not terms.acknowledged]
    summaries = {"terms": " ".join(terms.summary for terms in all_terms)}
    quotes = {
        f"{clause['document'] or 'terms'}, {clause['url']}, read on {clause['date_read']}": clause["quote"] or ""
        for terms in stopped
        for clause in terms.clauses
    }
    return [
        CheckResult(
            TERMS_CHECK.name, not stopped, details=summaries | quotes | ({"remedy": TERMS_REMEDY} if stopped else {})
        ),
        CheckResult(
            TERMS_KNOWN_CHECK.name,
            not unclear,
            "warning",
            summaries | ({"remedy": UNKNOWN_TERMS_REMEDY} if unclear else {}),
        ),
    ]


def require_acknowledgement(*specs: TeacherSpec) -> None:
    """Raise an error if a teacher must not be asked. Call this before any request.

    Raises:
        TermsError: the terms of a teacher restrict training with its answers, and task.yaml does not acknowledge that.
    """
    checks = check_terms(*specs)
    if checks[0].passed:
        return
    details = checks[0].details
    quotes = [f"“{text}” ({where})" for where, text in details.items() if where not in ("terms", "remedy")]
    raise TermsError(f"{details['terms']} Nothing was asked. {' '.join(quotes)} {TERMS_REMEDY}", checks)


TERMS_CHECK = CheckSpec(
    "terms_acknowledged",
    "If the provider's terms restrict training with its answers, task.yaml acknowledges it (`teacher.terms`). "
    "This check runs before the first request.",
    blocking=True,
)


# A separate check, since automation waits for failed blocking checks even if they only warn.
TERMS_KNOWN_CHECK = CheckSpec("terms_known", "The provider's terms on training with its answers are known.")
