"""Who answers, and how it is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.config.base import VARIABLE_NAME_PATTERN, ConfigModel
from distill_dagster.config.replay import REPLAY_NAME_PATTERN, REPLAY_PREFIX, ReplaySpec
from distill_dagster.config.terms import TermsSpec
from distill_dagster.core.redaction import is_plain_url

EMBEDDED_PREFIX = "embedded/"
FREE_TEXT_MAX_TOKENS = 1024
"""Default of teacher.max_tokens for answers that are written rather than chosen."""


class FewShotSpec(ConfigModel):
    """How examples.jsonl becomes few-shot examples. Draw i takes the next `per_label` examples of each label."""

    per_label: Annotated[int, Field(ge=0, le=50)] = 3
    nearest: Annotated[int, Field(ge=0, le=200)] = Field(
        default=0,
        description="so many examples that are nearest to the prompt, found by sentence embeddings, instead of "
        "per_label: for many labels, or where shared examples say little about a prompt",
    )
    draws: Annotated[int, Field(ge=1, le=32)] = 3
    seed: int = 0


class BatchSpec(ConfigModel):
    """How batches are looked after."""

    wait_s: Annotated[float, Field(ge=0)] = Field(
        default=90_000, description="how long a run waits for its batches: 25 hours; 0 leaves them to the sensor"
    )
    poll_s: Annotated[float, Field(gt=0)] = Field(
        default=30, description="first pause between looks; it grows to ten times as much"
    )


class PriceSpec(ConfigModel):
    """USD per million tokens."""

    input_usd: Annotated[float, Field(ge=0)]
    output_usd: Annotated[float, Field(ge=0)]


class TeacherSpec(ConfigModel):
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
    few_shot: FewShotSpec = FewShotSpec()
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
    price: PriceSpec | None = Field(default=None, description="where litellm does not know it, or yours is another")
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
        if value is not None and not is_plain_url(value):
            raise ValueError(
                "an address alone is wanted, such as https://host/v1: no user name, password, query or fragment. A key "
                "belongs into the environment variable that api_key_env names"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _name_of_variable(cls, value: str | None) -> str | None:
        if value is not None and not VARIABLE_NAME_PATTERN.fullmatch(value):
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
        if self.replayed and not REPLAY_NAME_PATTERN.fullmatch(self.model):
            raise ValueError(f"a replay teacher's model matches {REPLAY_NAME_PATTERN.pattern}")
        if self.replayed and self.soft_labels != "votes":
            raise ValueError("recorded completions have no log-probabilities; they need `soft_labels: votes`")
        return self

    @property
    def embedded(self) -> bool:
        return self.model.startswith(EMBEDDED_PREFIX)

    @property
    def replayed(self) -> bool:
        """Its completions were recorded elsewhere: it sends nothing and costs nothing."""
        return self.model.startswith(REPLAY_PREFIX)

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


class CascadeSpec(ConfigModel):
    """When a teacher counts as unsure of a prompt, so that the next one is asked."""

    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="its samples agree less than this; with one sample they always do"
    )
    min_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="its soft label gives its answer less than this"
    )


def fill_teacher_defaults(value: Any, kind: str | None, reasoning: bool | None) -> Any:
    """One teacher as written, with the defaults of the task's kind; a name alone is its model."""
    value = {"model": value} if isinstance(value, str) else value
    if isinstance(value, dict) and kind is not None and (kind not in LABEL_KINDS or reasoning):
        # A label is short and gains from averaging over draws; an answer that is written is neither.
        value = {"max_tokens": FREE_TEXT_MAX_TOKENS, "few_shot": {}} | value
        if isinstance(value["few_shot"], dict):
            value["few_shot"] = {"draws": 1} | value["few_shot"]
    return value


def check_teacher(spec: TeacherSpec, kind: str | None, reasoning: bool | None) -> TeacherSpec:
    """A teacher that can be asked for answers of the kind; `kind` is None where the task's is malformed.

    Raises:
        ValueError: a setting wants answers that are labels.
    """
    if kind is not None and spec.soft_labels == "logprobs" and (kind not in LABEL_KINDS or reasoning):
        raise ValueError(
            "soft_labels: logprobs reads a label from the first tokens; it wants a kind with labels "
            f"({' or '.join(LABEL_KINDS)}) and no `reasoning`. Leave it out, and set `samples` for votes"
        )
    if kind is not None and spec.calibration != "none" and kind not in LABEL_KINDS:
        raise ValueError(f"calibration is for kinds with labels ({' or '.join(LABEL_KINDS)})")
    return spec
