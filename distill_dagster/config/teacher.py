"""Settings of the teachers that answer prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill_dagster.config.answers import LABEL_KINDS, TaskKind
from distill_dagster.config.base import VARIABLE_NAME_PATTERN, ConfigModel
from distill_dagster.config.batch import BatchSpec
from distill_dagster.config.replay import REPLAY_NAME_PATTERN, REPLAY_PREFIX, ReplaySpec
from distill_dagster.config.terms import TermsSpec
from distill_dagster.config.thinking_models import THINKING_TOKENS, fill_thinking_defaults, is_thinking_model
from distill_dagster.core.redaction import is_plain_url

EMBEDDED_PREFIX = "embedded/"
RUNNER_PREFIXES = ("openai/", "hosted_vllm/")
"""How the ids of models begin that a batch runner can answer for: the same as of a vLLM server."""
STATED_SOFT_LABELS = ("verbalized", "ranking")
"""Values of `teacher.soft_labels` with which the teacher states soft labels in its answer."""
DEFAULT_RANKING_WEIGHTS = (0.9, 0.05, 0.02)
"""How often the first, second and third guess of a recorded teacher was right, on dev and seed prompts of Banking77."""
STATED_MAX_TOKENS = 256
"""Default of `teacher.max_tokens` for an answer that states probabilities or a ranking."""
FREE_TEXT_MAX_TOKENS = 1024
"""Default of `teacher.max_tokens` for answers that are written, not chosen from labels."""


class FewShotSpec(ConfigModel):
    """How examples.jsonl becomes few-shot examples. Each draw takes the next `per_label` examples of each label."""

    per_label: Annotated[int, Field(ge=0, le=50)] = Field(
        default=3, description="examples of each label in a draw; for kinds without labels, examples in a draw"
    )
    nearest: Annotated[int, Field(ge=0, le=200)] = Field(
        default=0,
        description="number of examples nearest to the prompt by sentence embedding, used instead of per_label: for "
        "many labels, or if shared examples help little",
    )
    draws: Annotated[int, Field(ge=1, le=32)] = Field(
        default=3,
        description="how often each prompt is asked, each time with other examples; by default 1 for written answers, "
        "and for `soft_labels: verbalized` or `ranking`",
    )
    seed: int = Field(default=0, description="seed of the choice of examples")


class PriceSpec(ConfigModel):
    """A price in USD per million tokens."""

    input_usd: Annotated[float, Field(ge=0)] = Field(description="USD per million prompt tokens")
    output_usd: Annotated[float, Field(ge=0)] = Field(description="USD per million tokens of answers")


class TeacherSpec(ConfigModel):
    """A teacher. `model` is `embedded/smollm2-135m-instruct`, `replay/<name>` or any litellm model id."""

    model: str = Field(
        description="`embedded/smollm2-135m-instruct`, `replay/<name>`, or any model id of litellm such as "
        "`openai/gpt-4o-mini`"
    )
    api: Literal["chat", "text"] = Field(
        default="chat", description="chat completions, or plain text completions for base models"
    )
    api_base: str | None = Field(
        default=None, description="address of the server, such as http://127.0.0.1:8000/v1; by default the provider's"
    )
    api_key_env: str | None = Field(default=None, description="name of the environment variable with the key")
    revision: str | None = Field(
        default=None, description="version of the model, if its name does not say it; another revision is asked again"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(
        default=0.0, description="randomness of the answers; 0 gives the most probable answer"
    )
    samples: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="answers per draw of few-shot examples; more than one needs a temperature above 0"
    )
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=16,
        description="longest answer; by default 1024 for written answers (with reasoning, or without labels), and 256 "
        "for `soft_labels: verbalized` or `ranking`",
    )
    thinking_tokens: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        default=None,
        description="tokens that the model may think before its answer, on top of max_tokens (chat API); by default "
        f"{THINKING_TOKENS} for models that are known to think, else 0",
    )
    response_format: Literal["auto", "json_schema", "prompt"] = Field(
        default="auto",
        description="how a written answer gets its JSON schema (chat API): json_schema by the provider's "
        "response_format, prompt by instructions, auto by json_schema if litellm knows that the model supports it; "
        "the same for tools",
    )
    soft_labels: Literal["logprobs", "votes", "verbalized", "ranking"] = Field(
        default="votes",
        description="where the probabilities of labels come from. logprobs: token log-probabilities, if the provider "
        "returns them; votes: the samples; verbalized: the teacher states them in its answer, which is JSON; ranking: "
        "the teacher ranks the plausible labels, and ranking_weights has their probabilities",
    )
    ranking_weights: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=DEFAULT_RANKING_WEIGHTS,
        min_length=1,
        max_length=20,
        description="for `soft_labels: ranking`, the probability of the first label, the second and so on; the rest "
        "to 1 is divided among all other labels",
    )
    top_logprobs: Annotated[int, Field(ge=1, le=5000)] = Field(
        default=20, description="for `soft_labels: logprobs`, how many of the most probable tokens the provider returns"
    )
    boost_labels: bool = Field(
        default=False,
        description="add a logit bias to the labels' tokens, so that even an unlikely label is among the "
        "top_logprobs; llama.cpp servers only (text API), which report probabilities after the bias",
    )
    resolve_labels: bool = Field(
        default=False,
        description="for labels that share their first tokens: ask again after the shared part (text API only)",
    )
    calibration: Literal["none", "examples"] = Field(
        default="none",
        description="divide soft labels, or the samples' votes, by the teacher's mean answer to examples that are not "
        "in the draw",
    )
    calibration_items: Annotated[int, Field(ge=1, le=50)] = Field(
        default=3, description="examples per label for the calibration"
    )
    few_shot: FewShotSpec = FewShotSpec()
    mode: Literal["online", "batch"] = Field(
        default="online",
        description="batch: use the provider's batch API, which is slower and less expensive, or a runner on your own "
        "GPU (`batch.runner`)",
    )
    batch: BatchSpec = BatchSpec()
    replay: ReplaySpec | None = Field(default=None, description="for `replay/<name>`: how its completions are read")
    concurrency: Annotated[int, Field(ge=1, le=512)] = Field(
        default=8, description="largest number of requests of a process at the same time"
    )
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="rate limit in requests, of all processes together"
    )
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="tokens of prompts and answers, of all processes together; an answer counts as max_tokens",
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="seconds until a request without an answer is cut"
    )
    max_retries: Annotated[int, Field(ge=0, le=20)] = Field(
        default=4, description="how often a request is sent again after a network error, a rate limit or a server error"
    )
    reasks: Annotated[int, Field(ge=0, le=10)] = Field(
        default=1, description="how often an unusable answer is asked for again; each is paid for"
    )
    price: PriceSpec | None = Field(
        default=None,
        description="for a model that litellm does not know, or your own price; of a replay teacher what its provider "
        "takes, for the report, since nothing is billed",
    )
    smoke_rows: Annotated[int, Field(ge=0, le=100)] = Field(
        default=8, description="rows that are asked first, before many requests are sent; 0 for none"
    )
    min_success: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="the asset fails if a smaller share of answers is usable"
    )
    terms: TermsSpec = Field(default=TermsSpec(), description="the provider's terms on training with answers")

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, value: Any) -> Any:
        return fill_thinking_defaults(value)

    @field_validator("api_base")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None and not is_plain_url(value):
            raise ValueError(
                "use an address such as https://host/v1, without user name, password, query or fragment. Put the key "
                "in the environment variable that api_key_env names"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _check_variable(cls, value: str | None) -> str | None:
        if value is not None and not VARIABLE_NAME_PATTERN.fullmatch(value):
            raise ValueError(
                "use the name of an environment variable in capitals, such as OPENAI_API_KEY, not the key itself. If "
                "this was a key, revoke it at the provider: it has been in a file"
            )
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> TeacherSpec:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples need a temperature above 0, such as 0.7: at 0 all of them are the same")
        if self.samples > 1 and self.soft_labels == "logprobs":
            raise ValueError("soft_labels: logprobs reads the whole distribution from one sample; leave samples out")
        if self.resolve_labels and self.api != "text":
            raise ValueError("resolve_labels continues an unfinished answer, which needs `api: text`")
        if self.boost_labels and (self.api, self.soft_labels) != ("text", "logprobs"):
            raise ValueError("boost_labels needs `api: text` and `soft_labels: logprobs`")
        if self.has_corrected_votes and self.requests_per_prompt == 1:
            raise ValueError(
                "calibration corrects probabilities or the shares of votes: set `soft_labels: logprobs`, `verbalized` "
                "or `ranking`, or several `samples` or `few_shot.draws`"
            )
        if self.calibration != "none" and self.is_replay:
            raise ValueError("calibration asks the teacher about examples, which a replay teacher cannot answer")
        if self.mode == "batch" and self.is_free:
            raise ValueError("mode: batch is for a provider with a batch API; an embedded or replay teacher has none")
        if self.batch.runner is not None and not self.model.startswith(RUNNER_PREFIXES):
            raise ValueError(
                f"batch.runner: {self.batch.runner} answers for an open model, whose id here begins with "
                f"{' or '.join(RUNNER_PREFIXES)}, such as openai/Qwen/Qwen3-8B"
            )
        if self.batch.runner is not None and self.api == "text":
            raise ValueError("batch.runner: vllm reads chat completions alone; it needs `api: chat`")
        if self.mode == "batch" and (self.resolve_labels or self.boost_labels):
            raise ValueError("resolve_labels and boost_labels send requests in steps; they need `mode: online`")
        if self.replay is not None and not self.is_replay:
            raise ValueError("replay is for a teacher whose model is `replay/<name>`")
        if self.is_replay and not REPLAY_NAME_PATTERN.fullmatch(self.model):
            raise ValueError(f"the model of a replay teacher must match {REPLAY_NAME_PATTERN.pattern}")
        if self.is_replay and self.soft_labels == "logprobs":
            raise ValueError("recorded completions have no log-probabilities; they need `soft_labels: votes`")
        if self.has_stated_soft_labels and self.api != "chat":
            raise ValueError(f"soft_labels: {self.soft_labels} asks for JSON, which needs `api: chat`")
        if "ranking_weights" in self.model_fields_set and self.soft_labels != "ranking":
            raise ValueError("ranking_weights is for `soft_labels: ranking`")
        if (
            list(self.ranking_weights) != sorted(self.ranking_weights, reverse=True)
            or sum(self.ranking_weights) > 1.001
        ):
            raise ValueError("ranking_weights must not increase from rank to rank, and their sum must not be above 1")
        return self

    @property
    def is_embedded(self) -> bool:
        """Whether the model runs on this machine, in a server that the project starts."""
        return self.model.startswith(EMBEDDED_PREFIX)

    @property
    def is_replay(self) -> bool:
        """Whether its completions were recorded elsewhere: it sends nothing and costs nothing."""
        return self.model.startswith(REPLAY_PREFIX)

    @property
    def has_no_server(self) -> bool:
        """Whether only a batch runner answers: nothing can be sent."""
        return self.batch.runner is not None and self.api_base is None

    @property
    def is_free(self) -> bool:
        """Whether asking costs nothing."""
        return self.is_embedded or self.is_replay

    @property
    def allowed_thinking_tokens(self) -> int:
        """The tokens that the model may think before its answer."""
        if self.thinking_tokens is not None:
            return self.thinking_tokens
        thinks = self.api == "chat" and not self.is_free and is_thinking_model(self.model)
        return THINKING_TOKENS if thinks else 0

    def build_params(self, temperature: float, max_tokens: int, sample: int) -> dict[str, Any]:
        """The sampling parameters of a request. They are part of its key."""
        params: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        if temperature > 0:
            params["seed"] = sample
        if self.thinking_tokens is not None:
            params["thinking_tokens"] = self.thinking_tokens
        return params

    def dump_identity(self) -> dict[str, Any]:
        """The model and its revision, which are part of every `request_key`. Address, limits and price are not."""
        return {"model": self.model, "revision": self.revision}

    def dump_result_settings(self) -> dict[str, Any]:
        """The settings that can change the teacher's tables, for hashes: not limits, address, key or price.

        The completions of a replay teacher have a data version of their own.
        """
        excluded = {"api_base", "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s"}
        excluded |= {"max_retries", "price", "smoke_rows", "min_success", "terms", "mode", "batch", "replay"}
        excluded |= {"thinking_tokens"} if self.thinking_tokens is None else set()
        excluded |= {"ranking_weights"} if self.soft_labels != "ranking" else set()
        return self.model_dump(exclude=excluded)

    @property
    def has_stated_soft_labels(self) -> bool:
        """Whether the teacher states probabilities or a ranking of labels in its answer."""
        return self.soft_labels in STATED_SOFT_LABELS

    @property
    def has_corrected_votes(self) -> bool:
        """Whether the calibration corrects votes, not probabilities."""
        return self.calibration != "none" and self.soft_labels == "votes"

    @property
    def requests_per_prompt(self) -> int:
        """The number of samples of a prompt. Sample i has the few-shot examples of draw `i % draws`."""
        return self.few_shot.draws * self.samples


class CascadeSpec(ConfigModel):
    """When a teacher's answer is uncertain, so that the next teacher is asked."""

    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="uncertain if the samples agree less; one sample always agrees"
    )
    min_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="uncertain if the soft label gives the answer less probability"
    )


def fill_teacher_defaults(value: Any, kind: Any, reasoning: bool) -> Any:
    """A teacher as written in task.yaml, with the defaults of the task's kind. A name alone is its model."""
    value = {"model": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        return value
    is_written = kind is not None and (kind not in LABEL_KINDS or reasoning)
    if is_written or value.get("soft_labels") in STATED_SOFT_LABELS:
        # A label is short and gains from averaging over draws. A written answer is long and does not.
        value = {"max_tokens": FREE_TEXT_MAX_TOKENS if is_written else STATED_MAX_TOKENS, "few_shot": {}} | value
        if isinstance(value["few_shot"], dict):
            value["few_shot"] = {"draws": 1} | value["few_shot"]
    return value


def check_teacher(spec: TeacherSpec, kind: TaskKind, reasoning: bool) -> None:
    """Check that a teacher can be asked for the answers of a task.

    Raises:
        ValueError: a setting needs answers that are labels.
    """
    if spec.soft_labels == "logprobs" and (kind not in LABEL_KINDS or reasoning):
        raise ValueError(
            "soft_labels: logprobs reads a label from the first tokens; it needs a kind with labels "
            f"({' or '.join(LABEL_KINDS)}) and no `reasoning`. Leave it out, and set `samples` for votes"
        )
    if spec.has_stated_soft_labels and kind not in LABEL_KINDS:
        raise ValueError(f"soft_labels: {spec.soft_labels} needs a kind with labels ({' or '.join(LABEL_KINDS)})")
    if spec.calibration != "none" and kind not in LABEL_KINDS:
        raise ValueError(f"calibration is for kinds with labels ({' or '.join(LABEL_KINDS)})")
