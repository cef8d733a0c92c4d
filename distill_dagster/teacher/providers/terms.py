"""A provider's terms on training another model with its answers: what is known of them, from where, and who said so.

`terms.yaml` beside this file holds what was read; a task may add to it (`teacher.terms`). Nothing here is advice: the
quotations are there to be read, and a person answers for the use.
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
"""Prefixes that also mean "a server that speaks like OpenAI": with an address of its own it is somebody else's."""
TERMS_REMEDY = (
    "Read the quoted terms where they are published. If you may train with the answers, write "
    "`terms: {acknowledged: true}` below `teacher` in task.yaml; otherwise choose another teacher."
)
UNKNOWN_TERMS_REMEDY = (
    "Read the provider's terms or the model's licence, and write what they say below `teacher.terms` in task.yaml: "
    "restricts, url, quote, date_read; or `acknowledged: true` alone."
)


class TermsClause(BaseModel):
    """One quotation: `url` is where the provider publishes it, `source` the copy that was read on `date_read`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    document: str
    dated: str | None
    url: str
    source: str
    quote: Annotated[str, Field(min_length=10)]
    date_read: date


class TermsEntry(BaseModel):
    """A row of the table; the comment in terms.yaml says what its fields mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    restricts: Literal["yes", "no"]
    providers: list[str] = []
    models: str | None = None
    clauses: Annotated[list[TermsClause], Field(min_length=1)]
    remark: str | None = None

    def fits(self, provider: str, model: str) -> bool:
        return provider in self.providers or (self.models is not None and re.search(self.models, model) is not None)


@dataclass(frozen=True)
class ProviderTerms:
    """The fact that every card carries. `declared_in` is "table", "task.yaml", or None where nothing is known."""

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
    def stops(self) -> bool:
        """Whether nothing may be asked yet."""
        return self.wants_acknowledgement and not self.acknowledged

    @property
    def summary(self) -> str:
        """One sentence for people."""
        if self.restricts == "unknown":
            said = f"The terms of {self.teacher} on training with its answers are not known here"
            return f"{said}; the task acknowledges them." if self.acknowledged else f"{said}."
        whose = f"{self.provider} ({self.teacher})" if self.provider else self.teacher
        by = ", as task.yaml states" if self.declared_in == "task.yaml" else ""
        if self.restricts == "no":
            return f"The terms of {whose} do not restrict training with its answers{by}."
        seen = "the task acknowledges it" if self.acknowledged else "the task does not acknowledge it"
        return f"The terms of {whose} restrict training with its answers{by}; {seen}."

    def as_json(self, role: ModelRole = "teacher") -> dict[str, Any]:
        """For metrics.json, metadata and release cards: plain JSON values, and what the model was asked for."""
        value = asdict(self) | {"summary": self.summary, "clauses": [dict(clause) for clause in self.clauses]}
        return {"role": role} | {name: value[name] for name in ("summary", *asdict(self))}


@cache
def load_terms_table() -> tuple[TermsEntry, ...]:
    """All entries of terms.yaml."""
    return tuple(TermsEntry.model_validate(row) for row in yaml.safe_load(TERMS_FILE.read_text(encoding="utf-8")))


def find_terms_entry(spec: TeacherSpec) -> TermsEntry | None:
    """The entry for a teacher: by litellm's prefix, or by the model's name wherever it is served.

    Of several that fit, one that restricts wins: a Gemma behind the Gemini API stands under both.
    """
    provider, _, rest = spec.model.partition("/")
    provider, model = (provider, rest) if rest else ("", spec.model)
    if provider in _OPENAI_PREFIXES and spec.api_base and urlsplit(spec.api_base).hostname != OPENAI_HOST:
        provider = ""
    found = [entry for entry in load_terms_table() if entry.fits(provider.lower(), model.lower())]
    return next((entry for entry in found if entry.restricts == "yes"), found[0] if found else None)


def find_terms(spec: TeacherSpec) -> ProviderTerms:
    """What is known of a teacher's terms. What the task states stands before the table, as the newer reading.

    A restriction that the table knows has to be acknowledged even where the task states that there is none.
    """
    said, entry = spec.terms, find_terms_entry(spec)
    wants = said.restricts == "yes" or (entry is not None and entry.restricts == "yes")
    common: dict[str, Any] = {
        "teacher": spec.model,
        "acknowledged": said.acknowledged,
        "wants_acknowledgement": wants,
        "provider": entry.name if entry else None,
        "note": said.note,
    }
    if said.restricts is not None:
        clause = {"document": None, "dated": None, "url": said.url, "source": said.url, "quote": said.quote}
        clauses = (clause | {"date_read": str(said.date_read)},)
        return ProviderTerms(restricts=said.restricts, declared_in="task.yaml", clauses=clauses, remark=None, **common)
    if entry is None:
        return ProviderTerms(restricts="unknown", declared_in=None, clauses=(), remark=None, **common)
    quoted = tuple(clause.model_dump(mode="json") for clause in entry.clauses)
    return ProviderTerms(restricts=entry.restricts, declared_in="table", clauses=quoted, remark=entry.remark, **common)


def check_terms(*specs: TeacherSpec) -> list[CheckResult]:
    """The checks `terms_acknowledged`, which blocks, and `terms_known`, which warns, for all teachers of a task."""
    every = [find_terms(spec) for spec in specs]
    stopped = [terms for terms in every if terms.stops]
    unclear = [terms for terms in every if terms.restricts == "unknown" and not terms.acknowledged]
    said = {"terms": " ".join(terms.summary for terms in every)}
    quotes = {
        f"{clause['document'] or 'terms'}, {clause['url']}, read on {clause['date_read']}": clause["quote"] or ""
        for terms in stopped
        for clause in terms.clauses
    }
    return [
        CheckResult(
            TERMS_CHECK.name, not stopped, details=said | quotes | ({"remedy": TERMS_REMEDY} if stopped else {})
        ),
        CheckResult(
            TERMS_KNOWN_CHECK.name, not unclear, "warning", said | ({"remedy": UNKNOWN_TERMS_REMEDY} if unclear else {})
        ),
    ]


def require_acknowledgement(*specs: TeacherSpec) -> None:
    """Called by whoever is about to ask: nothing is asked under terms that nobody acknowledged.

    Raises:
        TermsError: the terms of a teacher restrict training with its answers, and task.yaml does not acknowledge it.
    """
    checks = check_terms(*specs)
    if checks[0].passed:
        return
    found = checks[0].details
    quotes = [f"“{text}” ({where})" for where, text in found.items() if where not in ("terms", "remedy")]
    raise TermsError(f"{found['terms']} Nothing was asked. {' '.join(quotes)} {TERMS_REMEDY}", checks)


TERMS_CHECK = CheckSpec(
    "terms_acknowledged",
    "Where the provider's terms restrict training with its answers, task.yaml acknowledges it (`teacher.terms`). "
    "Stands before the first request.",
    blocking=True,
)


# A check of its own: automation waits for blocking checks that failed, also where they only warn.
TERMS_KNOWN_CHECK = CheckSpec("terms_known", "What the provider's terms say of training with its answers is known.")
