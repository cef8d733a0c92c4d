"""What a user writes in `task.yaml`: parsed, validated, hashed by part.

Every model forbids unknown keys, so that a misspelt setting is an error and not a silent default.
"""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timedelta
from itertools import islice, pairwise
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from distill_dagster.curation.about import About
from distill_dagster.curation.balance import BalanceSpec
from distill_dagster.curation.filters import Filter, Filters, in_order, scorers_of
from distill_dagster.curation.scores import Scorer, versions
from distill_dagster.curation.shift import ShiftSpec
from distill_dagster.curation.stepspecs import DecontaminationSpec, DedupSpec, switched
from distill_dagster.hashing import content_hash
from distill_dagster.patterns import pattern_problem
from distill_dagster.secrets import plain_address

TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
SLICE_KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
STUDENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
EMBEDDED = "embedded/"
REPLAY = "replay/"
REPLAY_NAME = re.compile(r"replay/[a-z0-9][a-z0-9._-]{0,62}")
WRITTEN_TOKENS = 1024
"""Default of teacher.max_tokens for answers that are written rather than chosen."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Model):
    """A category: its name as the models see it, and what belongs to it and what does not."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: Annotated[str, Field(min_length=1)]

    @field_validator("name")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        if value != value.strip() or "\n" in value:
            raise ValueError("a label has no space at its ends and no line break")
        return value


class FewShot(_Model):
    """How examples.jsonl becomes few-shot examples. Draw i takes the next `per_label` examples of each label."""

    per_label: Annotated[int, Field(ge=0, le=50)] = 3
    nearest: Annotated[int, Field(ge=0, le=200)] = Field(
        default=0,
        description="so many examples that are nearest to the prompt, found by sentence embeddings, instead of "
        "per_label: for many labels, or where shared examples say little about a prompt",
    )
    draws: Annotated[int, Field(ge=1, le=32)] = 3
    seed: int = 0


class ReplaySpec(_Model):
    """How recorded completions are read. Provider logs, stored completions and chat traces need none of the paths.

    A path is dotted (`request.messages.-1.content`) or a JSON pointer.
    """

    files: tuple[str, ...] = Field(
        default=(), description="files or folders below the task folder; by default recorded/<name>.jsonl"
    )
    match: Literal["text", "conversation", "id"] = Field(
        default="text",
        description="how a prompt finds its completion: by the last user turn, by all of them, or by the id that a "
        "seed, an imported prompt or a labelled row has",
    )
    prompt: str | None = None
    completion: str | None = None
    reasoning: str | None = None
    model: str | None = None
    id: str | None = None
    prompt_pattern: str | None = Field(
        default=None, description="a regular expression whose first group is the prompt within the recorded one"
    )

    @field_validator("files")
    @classmethod
    def _inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.strip() or name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise ValueError(f"{name!r} is not a path below the task folder, such as recorded/log.jsonl")
        return value

    @field_validator("prompt_pattern")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        if value is not None and "(" not in value:
            raise ValueError("the pattern has no group; put what is the prompt into parentheses")
        if value is not None and (why := pattern_problem(value)):
            raise ValueError(why)
        return value


class BatchSpec(_Model):
    """How batches are looked after."""

    wait_s: Annotated[float, Field(ge=0)] = Field(
        default=90_000, description="how long a run waits for its batches: 25 hours; 0 leaves them to the sensor"
    )
    poll_s: Annotated[float, Field(gt=0)] = Field(
        default=30, description="first pause between looks; it grows to ten times as much"
    )


class Price(_Model):
    """USD per million tokens."""

    input_usd: Annotated[float, Field(ge=0)]
    output_usd: Annotated[float, Field(ge=0)]


class BudgetSpec(_Model):
    """Hard caps on what a task may spend on teachers; a request that might go beyond one is not sent."""

    usd: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="of one campaign: one command, backfill or refresh"
    )
    tokens: Annotated[int, Field(ge=0)] | None = None
    month_usd: Annotated[float, Field(ge=0)] | None = Field(default=None, description="of a calendar month (UTC)")
    month_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def in_usd(self) -> bool:
        return self.usd is not None or self.month_usd is not None

    @property
    def any(self) -> bool:
        return self != BudgetSpec()

    def capped(self, other: BudgetSpec) -> BudgetSpec:
        """The lower cap of the two, each by itself."""
        lower = {}
        for name in BudgetSpec.model_fields:
            known = [cap for cap in (getattr(self, name), getattr(other, name)) if cap is not None]
            lower[name] = min(known) if known else None
        return BudgetSpec(**lower)


class CascadeSpec(_Model):
    """When a teacher counts as unsure of a prompt, so that the next one is asked."""

    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="its samples agree less than this; with one sample they always do"
    )
    min_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="its soft label gives its answer less than this"
    )


class TermsSpec(_Model):
    """What a task says of the provider's terms on training with the teacher's answers. Never part of a request."""

    acknowledged: bool = Field(default=False, description="you have read the terms and may train with the answers")
    restricts: Literal["yes", "no"] | None = Field(
        default=None, description="do they restrict training with answers; wants url, quote and date_read with it"
    )
    url: Annotated[str, Field(max_length=2000)] | None = None
    quote: Annotated[str, Field(min_length=10, max_length=5000)] | None = Field(
        default=None, description="the clause, word for word"
    )
    date_read: date | None = None
    note: Annotated[str, Field(max_length=2000)] | None = Field(default=None, description="carried into every card")

    @field_validator("restricts", mode="before")
    @classmethod
    def _yaml_yes(cls, value: Any) -> Any:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value  # YAML reads yes and no so

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError("the address of the terms begins with https://")
        return value

    @field_validator("date_read")
    @classmethod
    def _not_to_come(cls, value: date | None) -> date | None:
        if value is not None and value > date.today() + timedelta(days=1):  # a day: the clock of another zone
            raise ValueError("the day on which the terms were read is still to come")
        return value

    @model_validator(mode="after")
    def _whole(self) -> TermsSpec:
        told = (self.restricts, self.url, self.quote, self.date_read)
        if any(told) and not all(told):
            raise ValueError(
                "a statement on terms wants restricts, url, quote and date_read; without them it is unknown"
            )
        return self


class TeacherSpec(_Model):
    """Who answers. `model` is `embedded/smollm2-135m-instruct`, `replay/<name>` or any litellm model id."""

    model: str
    api: Literal["chat", "text"] = Field(
        default="chat", description="chat completions, or plain text completions for base models"
    )
    api_base: str | None = None
    api_key_env: str | None = Field(default=None, description="name of the environment variable that holds the key")
    revision: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    samples: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="answers asked for with each draw of few-shot examples; several want a temperature"
    )
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=16, description="of an answer; by default 1024 where one is written: with reasoning, or without labels"
    )
    response_format: Literal["auto", "json_schema", "prompt"] = Field(
        default="auto",
        description="how a written answer gets its JSON schema (chat API): by the provider's response_format, in the "
        "prompt, or the first where litellm knows that the model takes it; tools likewise",
    )
    soft_labels: Literal["logprobs", "votes"] = Field(
        default="votes", description="token log-probabilities where the provider gives them, else the samples' votes"
    )
    top_logprobs: Annotated[int, Field(ge=1, le=5000)] = 20
    boost_labels: bool = Field(
        default=False,
        description="raise the labels' tokens by a logit bias, so that however unlikely a label is, it is among the "
        "top_logprobs; llama.cpp servers only (text API), which report probabilities behind the bias",
    )
    resolve_labels: bool = Field(
        default=False,
        description="labels that share their first tokens: ask again behind the shared part (text API only)",
    )
    calibration: Literal["none", "examples"] = Field(
        default="none",
        description="divide soft labels, or the samples' votes, by the teacher's mean answer to examples left out of "
        "the draw",
    )
    calibration_items: Annotated[int, Field(ge=1, le=50)] = Field(
        default=3, description="examples of each label for the calibration"
    )
    few_shot: FewShot = FewShot()
    mode: Literal["online", "batch"] = Field(
        default="online", description="batch: through the provider's batch API, slower and at a lower price"
    )
    batch: BatchSpec = BatchSpec()
    replay: ReplaySpec | None = Field(default=None, description="for `replay/<name>`: where its completions lie")
    concurrency: Annotated[int, Field(ge=1, le=512)] = 8
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="of prompts and answers; an answer counts as max_tokens"
    )
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    max_retries: Annotated[int, Field(ge=0, le=20)] = 4
    reasks: Annotated[int, Field(ge=0, le=10)] = Field(
        default=1, description="how often an answer that cannot be used is asked for anew; each is paid for"
    )
    price: Price | None = Field(default=None, description="where litellm does not know it, or yours is another")
    smoke_rows: Annotated[int, Field(ge=0, le=100)] = Field(
        default=8, description="asked first, before many requests are sent; 0 for none"
    )
    min_success: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="share of answers below which the asset fails instead of passing on partial results"
    )
    terms: TermsSpec = Field(default=TermsSpec(), description="on the provider's terms on training with answers")

    @field_validator("api_base")
    @classmethod
    def _address_alone(cls, value: str | None) -> str | None:
        if value is not None and not plain_address(value):
            raise ValueError(
                "an address alone is wanted, such as https://host/v1: no user name, password, query or fragment. A key "
                "belongs into the environment variable that api_key_env names"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _name_of_variable(cls, value: str | None) -> str | None:
        if value is not None and not ENV_NAME.fullmatch(value):
            raise ValueError(
                "the name of an environment variable is wanted, in capitals such as OPENAI_API_KEY, and not the key "
                "itself. If this was a key, take it back at the provider: it has been in a file"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TeacherSpec:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples want a temperature above 0, such as 0.7: at 0 all of them are the same")
        if self.samples > 1 and self.soft_labels == "logprobs":
            raise ValueError("soft_labels: logprobs reads the whole distribution from one sample; leave samples out")
        if self.resolve_labels and self.api != "text":
            raise ValueError("resolve_labels continues a half-written answer, which needs `api: text`")
        if self.boost_labels and (self.api, self.soft_labels) != ("text", "logprobs"):
            raise ValueError("boost_labels needs `api: text` and `soft_labels: logprobs`")
        if self.votes_corrected and self.requests_per_prompt == 1:
            raise ValueError(
                "calibration corrects probabilities or the shares of votes: set `soft_labels: logprobs`, or several "
                "`samples` or `few_shot.draws`"
            )
        if self.calibration != "none" and self.replayed:
            raise ValueError("calibration asks the teacher about examples, which a replay teacher cannot answer")
        if self.mode == "batch" and self.free:
            raise ValueError("mode: batch is for a provider with a batch API; an embedded or replay teacher has none")
        if self.mode == "batch" and (self.resolve_labels or self.boost_labels):
            raise ValueError("resolve_labels and boost_labels ask a server several times; they need `mode: online`")
        if self.replay is not None and not self.replayed:
            raise ValueError("replay belongs to a teacher whose model is `replay/<name>`")
        if self.replayed and not REPLAY_NAME.fullmatch(self.model):
            raise ValueError(f"a replay teacher's model matches {REPLAY_NAME.pattern}")
        if self.replayed and self.soft_labels != "votes":
            raise ValueError("recorded completions have no log-probabilities; they need `soft_labels: votes`")
        return self

    @property
    def embedded(self) -> bool:
        return self.model.startswith(EMBEDDED)

    @property
    def replayed(self) -> bool:
        """Its completions were recorded elsewhere: it sends nothing and costs nothing."""
        return self.model.startswith(REPLAY)

    @property
    def free(self) -> bool:
        """Whether asking costs nothing: then the task may run by itself from the start."""
        return self.embedded or self.replayed

    def identity(self) -> dict[str, Any]:
        """All that can change an answer: in every request_key. Not where it is asked, how fast or how often."""
        return {"model": self.model, "revision": self.revision}

    def result_settings(self) -> dict[str, Any]:
        """The settings that can change the teacher's tables (not its limits, address or key).

        Settings that came later are left out while they have their default: no hash moves for them. What a replay
        teacher has recorded is a source of its own, by content: see `sources`.
        """
        how = {"api_base", "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s"}
        how |= {"max_retries", "price", "smoke_rows", "min_success", "terms", "mode", "batch", "replay"}
        settings = self.model_dump(exclude=how)
        for name in ("samples", "response_format", "reasks"):
            if settings[name] == type(self).model_fields[name].default:
                del settings[name]
        return settings

    @property
    def votes_corrected(self) -> bool:
        """Whether a prior corrects votes rather than probabilities."""
        return self.calibration != "none" and self.soft_labels == "votes"

    @property
    def requests_per_prompt(self) -> int:
        """Sample i of a prompt has the few-shot examples of draw i modulo `draws`."""
        return self.few_shot.draws * self.samples


class Asked(_Model):
    """A model that is asked for something else than the answers: its settings, as in `TeacherSpec`."""

    model: str
    api: Literal["chat", "text"] = "chat"
    api_base: str | None = None
    api_key_env: str | None = Field(default=None, description="name of the environment variable that holds the key")
    revision: str | None = None
    response_format: Literal["auto", "json_schema", "prompt"] = Field(
        default="auto",
        description="how an answer gets its form (chat API): by the provider's JSON schema, in the prompt, "
        "or the first where litellm knows that the model takes it",
    )
    concurrency: Annotated[int, Field(ge=1, le=512)] = 8
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    max_retries: Annotated[int, Field(ge=0, le=20)] = 4
    price: Price | None = Field(default=None, description="where litellm does not know it, or yours is another")
    terms: TermsSpec = Field(default=TermsSpec(), description="on the provider's terms on training with answers")

    def teacher(self, of_task: TeacherSpec) -> TeacherSpec:
        """As the engine takes it. An embedded model shares the server that the task's teacher runs on."""
        spec = TeacherSpec(**{name: getattr(self, name) for name in Asked.model_fields})
        return spec.model_copy(update={"few_shot": of_task.few_shot}) if spec.model == of_task.model else spec

    def asked_settings(self) -> dict[str, Any]:
        """What can change an answer: not where it is asked, how fast or how often."""
        return self.model_dump(include={"model", "api", "revision", "response_format"})


IMAGINE_METHODS = ("grid", "self_instruct", "evolve")
RESERVED_AXES = ("method", "evolution", "label")


class ImagineMethods(_Model):
    """Shares of the ways to imagine a prompt. They need not add up to 1."""

    grid: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="from a cell of the axes; by default 0.4, or nothing where there are no axes"
    )
    self_instruct: Annotated[float, Field(ge=0)] = 0.3
    evolve: Annotated[float, Field(ge=0)] = 0.3


class ImagineSpec(_Model):
    """How the teacher imagines prompts for slices whose `target` is more than what they have."""

    methods: ImagineMethods = ImagineMethods()
    axes: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default={}, description="difficulty, persona, style, edge_case, or any other: each with its values"
    )
    per_request: Annotated[int, Field(ge=1, le=100)] = 4
    examples: Annotated[int, Field(ge=0, le=50)] = Field(default=6, description="prompts shown for self_instruct")
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_chars: Annotated[int, Field(ge=1, le=100_000)] = Field(default=4000, description="of one imagined prompt")
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.7, description="Jaccard similarity of word 3-grams from which a longer text repeats another"
    )
    max_rounds: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5, description="each asks for all that is missing; a slice is also left after two without a new prompt"
    )
    seed: int = 0
    teacher: Asked | None = Field(default=None, description="who imagines; by default the task's teacher")

    @field_validator("teacher", mode="before")
    @classmethod
    def _short_teacher(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> ImagineSpec:
        for name in self.axes:
            if name in RESERVED_AXES or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", name):
                raise ValueError(f"axis {name!r}: use a name such as edge_case, and none of {', '.join(RESERVED_AXES)}")
        if self.methods.grid and not self.axes:
            raise ValueError("methods.grid needs `axes`")
        if not any(self.shares().values()):
            raise ValueError("methods: one share must be more than 0")
        return self

    def shares(self) -> dict[str, float]:
        """The share of each method, `IMAGINE_METHODS` in order; they add up to 1 unless all are 0."""
        grid = self.methods.grid if self.methods.grid is not None else 0.4 * bool(self.axes)
        given = dict(zip(IMAGINE_METHODS, (grid, self.methods.self_instruct, self.methods.evolve), strict=True))
        total = sum(given.values()) or 1.0
        return {name: share / total for name, share in given.items()}


class Criterion(_Model):
    """One line of a judge's rubric."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,40}$")]
    description: Annotated[str, Field(min_length=1)]


class JudgeSpec(Asked):
    """A second model that scores every candidate by a rubric, or picks the best of differing samples."""

    mode: Literal["score", "best_of"] = Field(
        default="score", description="score: 1 to 5 per criterion, with a reason; best_of: which of the samples to keep"
    )
    rubric: Annotated[list[Criterion], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 1000
    min_success: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="share of answers below which the asset fails instead of passing on partial results"
    )

    @field_validator("rubric")
    @classmethod
    def _unique(cls, value: list[Criterion]) -> list[Criterion]:
        for n, one in enumerate(value):
            if one.name in [other.name for other in value[:n]]:
                raise ValueError(f"criterion {one.name!r} stands twice")
        return value

    def judge_settings(self) -> dict[str, Any]:
        """The settings that can change what the judge says."""
        return self.asked_settings() | self.model_dump(include={"mode", "rubric", "temperature", "max_tokens"})


class Lora(_Model):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"


class StudentSpec(_Model):
    """Who learns: a causal LM that writes the label, or an encoder with a classification head."""

    model: str = Field(description="name of a packaged model, a folder, or a hub id")
    architecture: Literal["causal_lm", "encoder"]
    revision: str | None = None
    lora: Lora = Lora()
    quantization: Literal["none", "nf4"] = "none"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    epochs: Annotated[int, Field(ge=1, le=200)] = 2
    seed_only_epochs: Annotated[int, Field(ge=1, le=500)] | None = Field(
        default=None, description="epochs of seed_only; by default `epochs`"
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-4
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    temperature: Annotated[float, Field(gt=0, le=20)] = Field(default=1.0, description="of the distillation loss")
    soft_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="1: soft labels alone, 0: the kept label alone"
    )
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = Field(
        default=256, description="of a prompt; longer ones are cut"
    )
    answer_tokens: Annotated[int, Field(ge=1, le=8192)] = Field(
        default=256, description="of an answer that is written, with its reasoning: so many are learned and written"
    )
    reasoning: bool = Field(
        default=False,
        description="of a task with labels and `reasoning: true`: learn to write the teacher's reasoning and the label "
        "behind it, instead of choosing the label at once",
    )
    seed: int = 0


BASE_SETTINGS = (
    "model",
    "architecture",
    "revision",
    "quantization",
    "dtype",
    "max_tokens",
    "answer_tokens",
    "reasoning",
)
"""What of a student's settings shapes the answers of its base, the untrained model."""


class CurationSpec(_Model):
    filters: Filters = Filters()
    mix_examples: bool = Field(
        default=True, description="train on examples.jsonl too, beside the teacher's answers; human.jsonl always is"
    )
    human_weight: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="what a row that a person answered counts in training; one of the teacher counts 1"
    )
    dedup: DedupSpec = DedupSpec()
    decontamination: DecontaminationSpec | None = Field(
        default=DecontaminationSpec(), description="false: only rows with the very text of a golden or dev row leave"
    )
    balance: BalanceSpec = BalanceSpec()
    shift: ShiftSpec = ShiftSpec()
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stratify: Literal["label", "slice"] | None = Field(
        default=None,
        description="every label, or slice, has its share of validation; by default rows are drawn one by one, and "
        "none changes its side whatever else comes or goes",
    )
    min_rows: Annotated[int, Field(ge=1)] = Field(default=20, description="fewer kept rows block training")
    min_slices: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="fewer slices that give rows (the last good ones count) block training; by default nine in ten",
    )
    seed: int = 0

    @field_validator("decontamination", mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        return switched(value)

    def wanted_slices(self, slices: int) -> int:
        """How many of that many slices have to give rows."""
        return min(slices, self.min_slices) if self.min_slices is not None else math.ceil(0.9 * slices)


class RefreshSpec(_Model):
    """When a refresh runs by itself, and when it trains anew."""

    cron: str | None = Field(
        default="0 3 * * *", description="when the schedule refreshes: minute, hour, day, month, weekday; null: never"
    )
    timezone: str = "UTC"
    min_new_rows: Annotated[int, Field(ge=0)] = Field(
        default=0, description="a student is trained anew where more rows than this came, went or changed"
    )
    max_age_hours: Annotated[float, Field(ge=1 / 60, le=100_000)] | None = Field(
        default=None, description="the last refresh is overdue after this; by default twice the longest wait of `cron`"
    )

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            if len(value.split()) != 5:  # a sixth field would be seconds, which Dagster does not know
                raise CronSimError("five fields are wanted")
            CronSim(value, datetime(2026, 1, 1))
            days, weekdays = value.upper().split()[2], value.upper().split()[4]
            if "W" in days or ("L" in days and "/" in days) or "L" in weekdays:
                raise CronSimError("W and L of a weekday are not known here")
        except CronSimError as error:
            raise ValueError(
                f"not a cron expression: {str(error).lower()}; every night at three is 0 3 * * *"
            ) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a time zone; use a name such as UTC or Europe/Berlin") from None
        return value

    def max_age(self) -> timedelta | None:
        """After what time the last refresh is overdue; None where nothing refreshes by itself."""
        if self.max_age_hours is not None:
            return timedelta(hours=self.max_age_hours)
        if self.cron is None:
            return None
        ticks = list(islice(CronSim(self.cron, datetime(2026, 1, 1)), 60))
        return 2 * max(later - earlier for earlier, later in pairwise(ticks))


class InboxRule(_Model):
    """Where a prompt goes whose record matches: a slice, and a regular expression to be found in a field."""

    slice: str
    field: Annotated[str, Field(min_length=1)] | None = Field(default=None, description="by default the text")
    matches: Annotated[str, Field(min_length=1)]

    @field_validator("slice")
    @classmethod
    def _slice_key(cls, value: str) -> str:
        if not SLICE_KEY.fullmatch(value):
            raise ValueError(f"a slice matches {SLICE_KEY.pattern}")
        return value

    @field_validator("matches")
    @classmethod
    def _pattern(cls, value: str) -> str:
        if why := pattern_problem(value):
            raise ValueError(why)
        return value


class InboxSpec(_Model):
    """How lines of files in the inbox become prompts."""

    text_field: Annotated[str, Field(min_length=1)] = "text"
    slice_field: Annotated[str, Field(min_length=1)] = "slice"
    rules: list[InboxRule] = Field(default=[], description="for lines that name no slice; the first that matches")
    keep_files: bool = Field(
        default=False, description="keep taken files in done/, unmasked as they came; by default only their summary"
    )
    phone_regions: list[str] = Field(
        default=["US", "GB", "DE", "FR"],
        description="countries whose national way to write phone numbers is masked too; +49 … always is",
    )

    @field_validator("phone_regions")
    @classmethod
    def _regions(cls, value: list[str]) -> list[str]:
        from distill_dagster.masking import supported_regions

        for region in value:
            if region not in supported_regions():
                raise ValueError(f"{region!r} is not a country in two capital letters, such as US or DE")
        return value

    @model_validator(mode="after")
    def _two_fields(self) -> InboxSpec:
        if self.text_field == self.slice_field:
            raise ValueError("text_field and slice_field name the same field")
        return self


class EvaluationSpec(_Model):
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    latency_items: Annotated[int, Field(ge=1, le=10_000)] = 40
    student_usd_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="price of the machine that serves the student; without it the cost is unknown"
    )
    seed: int = 0


class GateSpec(_Model):
    """What the teacher has to reach on dev before any slice is paid for."""

    teacher_min: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="least score of the teacher on dev, in the metric of the kind"
    )
    teacher_over_base: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=0.0,
        description="the teacher's score on dev is at least so much above that of the untrained student; null: the "
        "two are not compared, and no student model is loaded",
    )
    items: Annotated[int, Field(ge=1)] = Field(
        default=200, description="how many rows of dev are compared, where it has more"
    )


class Tool(_Model):
    """A function that the answer of a `tool_call` task may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}$")]
    description: Annotated[str, Field(min_length=1)]
    parameters: dict[str, Any] = Field(
        default={"type": "object", "properties": {}}, description="JSON schema of its arguments"
    )

    @field_validator("parameters")
    @classmethod
    def _schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from distill_dagster.kinds.schemas import schema_problem

        if why := schema_problem(value):
            raise ValueError(why)
        return value


class AnswerSpec(_Model):
    """How an answer is found in what a model wrote, and when two are equal."""

    pattern: str | None = Field(
        default=None, description="a regular expression with a group `answer`; its last match counts"
    )
    stop: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="what a raw completion runs on with: the text before it counts"
    )
    choices: bool = Field(default=False, description="kind qa: the answer is one of the lettered options of the prompt")
    exact: bool = Field(default=False, description="kind qa: answers are equal only where every character is")
    tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1e-6, description="kind math: numbers are equal within this, relative or absolute"
    )

    @field_validator("pattern")
    @classmethod
    def _named_group(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if why := pattern_problem(value):
            raise ValueError(why)
        if not re.search(r"\(\?P?<answer>", value):
            raise ValueError("a group `(?P<answer>…)` is wanted: what it holds is the answer")
        return value


KIND = Literal[
    "classification",
    "nli",
    "extraction",
    "qa",
    "math",
    "summarization",
    "conversation",
    "tool_call",
    "generation",
]
LABEL_KINDS = ("classification", "nli")
INSTRUCTIONS = {
    "classification": "Sort the message into one of the categories.",
    "nli": "Say whether the hypothesis follows from the premise.",
    "extraction": "Extract the wanted fields from the text.",
    "qa": "Answer the question.",
    "math": "Solve the problem. The answer is one number, without a unit.",
    "summarization": "Summarize the text.",
    "conversation": "Write the next reply of the assistant.",
    "tool_call": "Choose which tools to call, and with what arguments.",
    "generation": "Rewrite the text.",
}


class Task(_Model):
    """All of `task.yaml`."""

    kind: KIND
    description: Annotated[str, Field(min_length=1)]
    instructions: Annotated[str, Field(min_length=1)] = Field(
        default=None, validate_default=True, description="what is to be done; each kind has words of its own"
    )
    item: Annotated[str, Field(min_length=1, max_length=40)] = Field(
        default="Message", description="what one prompt is called in templates: Ticket, Message, Question"
    )
    owners: list[str] = []
    labels: list[Label] = Field(default=[], validate_default=True)
    reasoning: bool = Field(default=False, description="ask the teacher for its reasoning before the answer")
    answer: AnswerSpec = AnswerSpec()
    answer_schema: dict[str, Any] | None = Field(
        default=None, validate_default=True, description="kind extraction: JSON schema of an answer"
    )
    tools: list[Tool] = Field(default=[], validate_default=True)
    teachers: dict[str, TeacherSpec] = Field(
        default={}, description="several teachers by name, instead of `teacher`; the one to trust most stands last"
    )
    cascade: CascadeSpec | None = Field(
        default=None, description="ask the next of `teachers` only where the one before is unsure; else all answer"
    )
    teacher: TeacherSpec = Field(default=None, validate_default=True)
    imagine: ImagineSpec | None = None
    judge: JudgeSpec | None = None
    students: Annotated[dict[str, StudentSpec], Field(min_length=1)]
    default_student: str | None = None
    curation: CurationSpec = CurationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    budget: BudgetSpec = BudgetSpec()
    refresh: RefreshSpec = RefreshSpec()
    inbox: InboxSpec = InboxSpec()

    @field_validator("instructions", mode="before")
    @classmethod
    def _own_words(cls, value: Any, info: ValidationInfo) -> Any:
        return INSTRUCTIONS.get(info.data.get("kind", ""), "-") if value is None else value

    @field_validator("teachers", mode="before")
    @classmethod
    def _short_teachers(cls, value: Any, info: ValidationInfo) -> Any:
        return {name: cls._filled(one, info) for name, one in value.items()} if isinstance(value, dict) else value

    @field_validator("teachers")
    @classmethod
    def _teacher_names(cls, value: dict[str, TeacherSpec], info: ValidationInfo) -> dict[str, TeacherSpec]:
        for name, one in value.items():
            if not STUDENT_NAME.fullmatch(name):
                raise ValueError(f"teacher name {name!r} must match {STUDENT_NAME.pattern}")
            if one.calibration != "none":
                raise ValueError(f"{name}: calibration is for a task with one teacher")
            cls._teacher_of_kind(one, info)
        return value

    @field_validator("cascade", mode="before")
    @classmethod
    def _default_cascade(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and len(info.data.get("teachers", {1: 1, 2: 2})) < 2:
            raise ValueError("a cascade wants two `teachers` or more")
        return value

    @field_validator("teacher", mode="before")
    @classmethod
    def _short_teacher(cls, value: Any, info: ValidationInfo) -> Any:
        if "teachers" not in info.data:  # they are malformed, which is said already
            return TeacherSpec(model="-") if value is None else value
        several = info.data["teachers"]
        if value is not None and several:
            raise ValueError("name one `teacher`, or several `teachers`, not both")
        if value is None:
            if not several:
                raise PydanticKnownError("missing")
            return next(iter(several.values()))
        return cls._filled(value, info)

    @classmethod
    def _filled(cls, value: Any, info: ValidationInfo) -> Any:
        """One teacher with the defaults of the task's kind; a name alone is its model."""
        value = {"model": value} if isinstance(value, str) else value
        kind, reasoning = info.data.get("kind"), info.data.get("reasoning")
        if isinstance(value, dict) and kind is not None and (kind not in LABEL_KINDS or reasoning):
            # A label is short and gains from averaging over draws; an answer that is written is neither.
            value = {"max_tokens": WRITTEN_TOKENS, "few_shot": {}} | value
            if isinstance(value["few_shot"], dict):
                value["few_shot"] = {"draws": 1} | value["few_shot"]
        return value

    @field_validator("teacher")
    @classmethod
    def _teacher_of_kind(cls, value: TeacherSpec, info: ValidationInfo) -> TeacherSpec:
        kind, reasoning = info.data.get("kind"), info.data.get("reasoning")
        if kind is not None and value.soft_labels == "logprobs" and (kind not in LABEL_KINDS or reasoning):
            raise ValueError(
                "soft_labels: logprobs reads a label from the first tokens; it wants a kind with labels "
                f"({' or '.join(LABEL_KINDS)}) and no `reasoning`. Leave it out, and set `samples` for votes"
            )
        if kind is not None and value.calibration != "none" and kind not in LABEL_KINDS:
            raise ValueError(f"calibration is for kinds with labels ({' or '.join(LABEL_KINDS)})")
        return value

    @field_validator("students")
    @classmethod
    def _student_names(cls, value: dict[str, StudentSpec], info: ValidationInfo) -> dict[str, StudentSpec]:
        for name, student in value.items():
            if not STUDENT_NAME.fullmatch(name):
                raise ValueError(f"student name {name!r} must match {STUDENT_NAME.pattern}")
            kind = info.data.get("kind", LABEL_KINDS[0])
            if student.architecture == "encoder" and kind not in LABEL_KINDS:
                raise ValueError(
                    f"student {name!r} is an encoder, which chooses among labels; kind {kind} wants "
                    f"`architecture: causal_lm`"
                )
            if student.reasoning and kind not in LABEL_KINDS:
                raise ValueError(
                    f"student {name!r}: reasoning is for kinds with labels; of kind {kind} it is learned wherever the "
                    f"task has `reasoning: true`. Leave it out"
                )
            if student.reasoning and not info.data.get("reasoning", True):
                raise ValueError(
                    f"student {name!r} is to learn reasoning, and the teacher is not asked for it: set "
                    f"`reasoning: true` for the task"
                )
            if student.reasoning and student.architecture == "encoder":
                raise ValueError(
                    f"student {name!r} is an encoder, which writes nothing; reasoning wants `architecture: causal_lm`"
                )
        return value

    @field_validator("answer")
    @classmethod
    def _choices_of_qa(cls, value: AnswerSpec, info: ValidationInfo) -> AnswerSpec:
        if (value.choices or value.exact) and info.data.get("kind", "qa") != "qa":
            raise ValueError("answer.choices and answer.exact are for kind qa alone")
        return value

    @field_validator("answer_schema")
    @classmethod
    def _schema_of_extraction(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        from distill_dagster.kinds.schemas import schema_problem

        wanted = info.data.get("kind") == "extraction"
        if value is None:
            if wanted:
                raise PydanticCustomError("missing", "kind extraction wants the JSON schema of an answer")
            return None
        if not wanted:
            raise ValueError("answer_schema is for kind extraction alone")
        if value.get("type") != "object":
            raise ValueError("the schema of an answer begins with `type: object`")
        if why := schema_problem(value):
            raise ValueError(why)
        return value

    @field_validator("tools")
    @classmethod
    def _tools_of_kind(cls, value: list[Tool], info: ValidationInfo) -> list[Tool]:
        wanted = info.data.get("kind") == "tool_call"
        if wanted and not value:
            raise PydanticCustomError("missing", "kind tool_call wants the tools that may be called")
        if value and not wanted:
            raise ValueError("tools are for kind tool_call alone")
        names = [tool.name for tool in value]
        if len(set(names)) < len(names):
            raise ValueError("a tool's name stands twice")
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _default_labels(cls, value: Any, info: ValidationInfo) -> Any:
        from distill_dagster.kinds.labels import NLI_LABELS

        if value == [] and info.data.get("kind") == "nli":
            return [{"name": name, "description": description} for name, description in NLI_LABELS]
        return value

    @field_validator("labels")
    @classmethod
    def _unique_labels(cls, value: list[Label], info: ValidationInfo) -> list[Label]:
        kind = info.data.get("kind")
        if kind is not None and kind not in LABEL_KINDS and value:
            raise ValueError(f"kind {kind} has no labels")
        if kind in LABEL_KINDS and not value:
            raise PydanticCustomError("missing", "field required")
        if kind in LABEL_KINDS and len(value) < 2:
            raise PydanticCustomError("too_short", "list should have at least 2 items after validation, not 1")
        seen: set[str] = set()
        for label in value:
            if label.name.casefold() in seen:
                raise ValueError(f"label {label.name!r} stands twice")
            seen.add(label.name.casefold())
        return value

    @model_validator(mode="after")
    def _default_student(self) -> Task:
        if self.default_student is not None and self.default_student not in self.students:
            raise ValueError(f"default_student {self.default_student!r} is not one of {', '.join(self.students)}")
        return self

    @model_validator(mode="after")
    def _judged(self) -> Task:
        if self.curation.filters.min_judge and (self.judge is None or self.judge.mode != "score"):
            raise ValueError("curation.filters.min_judge needs a `judge` with `mode: score`")
        return self

    @property
    def free(self) -> bool:
        """Whether everybody that is asked is embedded or a replay and costs nothing."""
        imaginer = self.imagine.teacher if self.imagine else None
        models = [one.model for one in self.teacher_specs]
        models += [one.model for one in (imaginer, self.judge) if one is not None]
        return all(model.startswith((EMBEDDED, REPLAY)) for model in models)

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]

    @property
    def chosen_student(self) -> str:
        return self.default_student or next(iter(self.students))

    @property
    def has_labels(self) -> bool:
        return self.kind in LABEL_KINDS

    @property
    def answers_are_written(self) -> bool:
        """Whether the teacher writes an answer, with its reasoning or of a kind without labels, or names a label."""
        return not self.has_labels or self.reasoning

    def _shared(self) -> dict[str, Any]:
        return {"kind": self.kind, "labels": [label.model_dump() for label in self.labels]} | self._answers()

    def _answers(self) -> dict[str, Any]:
        """What a task says of its answers beside its labels; nothing where it says nothing, so that no hash moves."""
        said = {
            "reasoning": self.reasoning or None,
            "answer": self.answer.model_dump(exclude_defaults=True) or None,
            "answer_schema": self.answer_schema,
            "tools": [tool.model_dump() for tool in self.tools] or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    def each_teacher(self) -> list[tuple[str, Task]]:
        """The teachers in their order: the name in the column `teacher`, and the task as if it had that one alone."""
        if not self.teachers:
            return [(self.teacher.model, self)]
        alone: dict[str, Any] = {"teachers": {}, "cascade": None}
        return [(name, self.model_copy(update=alone | {"teacher": one})) for name, one in self.teachers.items()]

    @property
    def teacher_specs(self) -> list[TeacherSpec]:
        return list(self.teachers.values()) or [self.teacher]

    def teacher_hash(self, templates: dict[str, str]) -> str:
        """Hash of everything that shapes a teacher request or how its answer is read."""
        shared = self._shared() | {"instructions": self.instructions, "item": self.item}
        asked: dict[str, Any] = {"teacher": self.teacher.result_settings()}
        if self.teachers:
            cascade = self.cascade.model_dump() if self.cascade else None
            each = [[name, one.result_settings()] for name, one in self.teachers.items()]
            asked = {"teachers": each, "cascade": cascade}
        return content_hash(shared | asked | {"templates": templates})

    def imagine_hash(self, templates: dict[str, str]) -> str:
        """Hash of everything that shapes a request for new prompts."""
        assert self.imagine is not None
        settings = self.imagine.model_dump(exclude={"teacher"})
        settings["teacher"] = self.imagine.teacher.asked_settings() if self.imagine.teacher else None
        return content_hash({"description": self.description, "imagine": settings, "templates": templates})

    def judge_hash(self, templates: dict[str, str]) -> str:
        """Hash of everything that shapes a request to the judge, but the rows themselves."""
        assert self.judge is not None
        shown = {"description": self.description, "instructions": self.instructions, "item": self.item}
        settings = self.judge.judge_settings()
        if self.judge.mode == "best_of" and not self.has_labels:
            settings["options"] = "differ as the kind says"  # it came later, and changes what is asked of these alone
        return content_hash(self._shared() | shown | {"judge": settings, "templates": templates})

    def curation_hash(self) -> str:
        curation = self.curation.model_dump(exclude={"filters"}) | {"filters": self.curation.filters.said()}
        named = {"kind": self.kind, "labels": self.label_names} | self._answers()
        return content_hash(named | {"curation": curation})

    @property
    def filters(self) -> list[Filter]:
        """The filters of the task in the order in which they are applied."""
        return in_order(self.curation.filters, About.of(self))

    @property
    def scorers(self) -> list[Scorer]:
        """The scorers that its filters read."""
        return scorers_of(self.filters)

    @property
    def answers_hash(self) -> str:
        """Hash of what the task says of its answers, which scores may hang on."""
        return content_hash(self._shared())

    def score_hash(self) -> str:
        """Hash of which scores are computed, and how: no threshold is in it."""
        return content_hash(versions(self.scorers))

    def student_hash(self, student: str) -> str:
        shared = self._shared() | {"instructions": self.instructions, "item": self.item}
        settings = self.students[student].model_dump()
        for name in ("answer_tokens", "reasoning"):
            if settings[name] == StudentSpec.model_fields[name].default:
                del settings[name]  # it came later: no hash moves for it
        return content_hash(shared | {"student": settings})

    def gate_hash(self) -> str:
        """Hash of what the teacher has to reach, and of the base that it is compared with."""
        base: dict[str, Any] | None = None
        if self.gate.teacher_over_base is not None:
            student = self.students[self.chosen_student]
            # Apart: the task has a setting `reasoning` of its own.
            base = {"student": student.model_dump(include=set(BASE_SETTINGS))} | self._shared()
            base |= {"instructions": self.instructions, "item": self.item}
        return content_hash({"gate": self.gate.model_dump(), "base": base})

    def evaluation_hash(self) -> str:
        named = {"labels": self.label_names} | ({} if self.has_labels else {"kind": self.kind})
        return content_hash({"evaluation": self.evaluation.model_dump()} | named | self._answers())
