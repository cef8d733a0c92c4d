"""Write the task.yaml of a new task, with a comment at each choice."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from distill_dagster.config import EMBEDDED_PREFIX, LABEL_KINDS, TaskKind
from distill_dagster.config.answers import DEFAULT_INSTRUCTIONS
from distill_dagster.core.formatting import count_noun
from distill_dagster.new_task.split import Part

EMBEDDED_TEACHER = f"{EMBEDDED_PREFIX}smollm2-135m-instruct"
EMBEDDED_BYTES = 10_000
"""Bytes that fit into a prompt of the embedded teacher (4,096 tokens)."""
KEY_VARIABLES = {
    "openai": "OPENAI_API_KEY",
    "text-completion-openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "mistral": "MISTRAL_API_KEY",
    "groq": "GROQ_API_KEY",
    "together_ai": "TOGETHERAI_API_KEY",
    "fireworks_ai": "FIREWORKS_AI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "cohere": "COHERE_API_KEY",
    "cohere_chat": "COHERE_API_KEY",
    "xai": "XAI_API_KEY",
    "perplexity": "PERPLEXITYAI_API_KEY",
    "azure": "AZURE_API_KEY",
    "huggingface": "HF_TOKEN",
}
"""The variable that litellm reads for a provider."""
_ITEMS = {"qa": "Question", "math": "Problem", "summarization": "Text", "extraction": "Text", "generation": "Text"}
_DESCRIPTIONS: dict[TaskKind, str] = {
    "classification": "Sort messages into {labels} categories.",
    "nli": "Say whether a hypothesis follows from a premise.",
    "extraction": "Extract fields from texts.",
    "qa": "Answer questions.",
    "math": "Solve problems whose answer is a number.",
    "summarization": "Summarize texts.",
    "conversation": "Write the next reply in a conversation.",
    "tool_call": "Choose which tools to call, and with what arguments.",
    "generation": "Write a text for each request.",
}
PART_USES: dict[Part, str] = {
    "examples": "few-shot examples for the teacher; seed_only trains on them",
    "dev": "every choice of prompt, epochs and threshold; the teacher's gate",
    "golden": "held out, scored with final settings only",
    "seeds": "prompts that the teacher answers for the student",
}


@dataclass(frozen=True)
class TeacherChoice:
    """The teacher of a new task. Without a key variable the usual one of the provider is named."""

    model: str = EMBEDDED_TEACHER
    api_base: str | None = None
    api_key_env: str | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether it runs on this machine without a server of one's own."""
        return self.model.startswith(EMBEDDED_PREFIX)

    @property
    def key_variable(self) -> str | None:
        """The environment variable with its key, if it is known to need one."""
        needs_key = self.api_base is None and not self.is_embedded
        return self.api_key_env or (KEY_VARIABLES.get(self.model.partition("/")[0]) if needs_key else None)


@dataclass(frozen=True)
class TaskSketch:
    """What a task.yaml is written from.

    Attributes:
        labels: each label with the number of its rows.
        parts: the number of rows of each part.
        fewest_examples: examples of the label that has the fewest, or of all if there are no labels.
        text_bytes: mean length of a text in UTF-8, and the length that one in twenty exceeds.
        answer_bytes: the same for answers.
        has_references: whether seeds have the answer that the file gives them.
        schema_path: the JSON schema of task.yaml for editors, relative to the task folder.
    """

    name: str
    source: str
    kind: TaskKind
    parts: Mapping[Part, int]
    seed: int = 0
    description: str | None = None
    labels: Sequence[tuple[str, int]] = ()
    answer_schema: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    reasoning: bool = False
    fewest_examples: int = 2
    text_bytes: tuple[float, float] = (100, 200)
    answer_bytes: tuple[float, float] = (20, 40)
    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    student: str | None = None
    has_references: bool = False
    schema_path: str | None = None

    @property
    def has_labels(self) -> bool:
        """Whether an answer is one of the labels."""
        return self.kind in LABEL_KINDS


def quote(value: str) -> str:
    """A text as a YAML scalar on one line, without quotation marks where it needs none."""
    if re.fullmatch(r"[A-Za-z][\w .,/()'-]*", value) and not value.endswith(" ") and yaml.safe_load(value) == value:
        return value
    return str(yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf)).strip()


def render_task_yaml(sketch: TaskSketch) -> str:
    """The whole file."""
    blocks = [
        _render_head(sketch),
        _render_labels(sketch),
        _render_schema(sketch),
        _render_teacher(sketch),
        _render_students(sketch),
        _render_curation(sketch),
    ]
    return "\n".join(line.rstrip() for block in blocks if block for line in [*block, ""]).rstrip("\n") + "\n"


def _render_head(sketch: TaskSketch) -> list[str]:
    default = _DESCRIPTIONS[sketch.kind].format(labels=len(sketch.labels))
    lines = [f"# Made by `distill new {sketch.name}` from {quote(sketch.source)}, split with seed {sketch.seed}:"]
    for part in ("examples", "dev", "golden", "seeds"):
        name = "slices/*.yaml" if part == "seeds" else f"{part}.jsonl"
        lines.append(f"#   {name:<15}{sketch.parts[part]:>6}  {PART_USES[part]}")
    lines += [
        "# Everything here can be changed. `distill check` names every mistake with its line.",
        *([f"# yaml-language-server: $schema={sketch.schema_path}"] if sketch.schema_path else []),
        f"kind: {sketch.kind}",
        f"description: {quote(sketch.description or default)}",
    ]
    if sketch.kind != "conversation":
        lines.append(f"item: {_ITEMS.get(sketch.kind, 'Message')}  # what one prompt is called in the teacher's prompt")
    lines.append("# What the teacher is asked to do. Say more here if it makes systematic mistakes.")
    lines.append(f"instructions: {quote(DEFAULT_INSTRUCTIONS[sketch.kind])}")
    if sketch.reasoning:
        lines.append("reasoning: true  # the teacher writes its reasoning before the answer")
    return lines


def _render_labels(sketch: TaskSketch) -> list[str]:
    if not sketch.has_labels:
        return []
    lines = ["# The teacher reads the descriptions. Say what belongs to a label, and what goes to another one instead."]
    lines.append("labels:")
    for name, count in sketch.labels:
        lines.append(f"  - name: {quote(name)}" + (f"  # {count_noun(count, 'row')}" if count else ""))
        lines.append(f"    description: {quote(_describe_label(name))}")
    return lines


def _describe_label(name: str) -> str:
    words = " ".join(re.sub(r"[_\-/]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).split())
    return words if re.search(r"\w", words) else name


def _render_schema(sketch: TaskSketch) -> list[str]:
    if sketch.kind == "extraction":
        head = "# From the answers in the file: an answer that does not fit is not used. Narrow it where you can."
        return [head, *_dump_block({"answer_schema": dict(sketch.answer_schema or {})})]
    if sketch.kind == "tool_call":
        head = "# From the calls in the file. The teacher reads the descriptions."
        return [head, *_dump_block({"tools": [dict(tool) for tool in sketch.tools]})]
    return []


def _dump_block(value: Mapping[str, Any]) -> list[str]:
    return str(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=110)).splitlines()


def _render_teacher(sketch: TaskSketch) -> list[str]:
    if sketch.teacher.is_embedded:
        return _render_embedded_teacher(sketch)
    teacher, lines = sketch.teacher, ["teacher:", f"  model: {quote(sketch.teacher.model)}"]
    if teacher.api_base:
        lines.append(f"  api_base: {quote(teacher.api_base)}")
    if teacher.key_variable:
        lines.append(f"  api_key_env: {teacher.key_variable}  # the variable that has the key, never the key itself")
    lines.append(f"  few_shot: {_choose_few_shot(sketch)}")
    if not teacher.model.startswith("replay/"):
        if sketch.has_labels:
            lines += [
                "  # Let the student learn how sure the teacher is: the teacher states probabilities (verbalized), or",
                "  # the provider returns those of its tokens (logprobs; only without `reasoning`).",
                "  # soft_labels: verbalized",
            ]
        lines += [
            "  # Some providers restrict training with their answers; `distill check` quotes the terms. If you may:",
            "  # terms: {acknowledged: true}",
            "# budget: {usd: 5}  # a hard cap per command; `distill estimate` shows what a run would take",
        ]
    return lines


def _render_embedded_teacher(sketch: TaskSketch) -> list[str]:
    lines = [
        "# The embedded teacher needs no key and no network. It is very small: on your own data the report will most",
        "# likely say that it is not worth it. It shows that everything works. For a real teacher, write for example",
        "#   teacher: {model: openai/gpt-4o-mini, api_key_env: OPENAI_API_KEY, few_shot: {draws: 1}}",
        "teacher:",
        f"  model: {sketch.teacher.model}",
        "  api: text",
    ]
    few_shot = _choose_few_shot(sketch)
    if sketch.has_labels and not sketch.reasoning:
        lines += ["  soft_labels: logprobs", "  top_logprobs: 100", "  boost_labels: true", "  max_tokens: 1"]
        if _share_beginning([name for name, _ in sketch.labels]):
            lines.append("  resolve_labels: true  # some labels begin alike")
        if "per_label" in few_shot:
            lines += ["  calibration: examples", "  calibration_items: 3"]
    else:
        lines += [f"  max_tokens: {_choose_answer_tokens(sketch)}", "  min_success: 0.5"]
    lines.append(f"  few_shot: {few_shot}")
    lines += [
        "gate: {teacher_over_base: null}  # a free teacher is asked even if it is weak; remove this with a paid one",
    ]
    return lines


def _choose_few_shot(sketch: TaskSketch) -> str:
    """Few-shot examples that fit into the prompt, and that examples.jsonl has."""
    budget = EMBEDDED_BYTES if sketch.teacher.is_embedded else 40_000
    one = sketch.text_bytes[0] + (10 if sketch.has_labels and not sketch.reasoning else sketch.answer_bytes[0]) + 12
    fitting = max(1, int((budget - sketch.text_bytes[1] - sketch.answer_bytes[1]) / one))
    if not sketch.has_labels:
        most = max(1, min(4 if sketch.teacher.is_embedded else 8, sketch.fewest_examples, fitting))
        return f"{{per_label: {most}, draws: 1}}"
    labels = max(len(sketch.labels), 1)
    if labels > min(24, fitting):
        return f"{{nearest: {min(8, fitting)}, draws: 1}}  # the examples most similar to each prompt"
    if sketch.teacher.is_embedded and not sketch.reasoning:
        return "{per_label: 1, draws: 2}  # each prompt is asked twice, with other examples"
    most = max(1, min(2, sketch.fewest_examples, fitting // labels))
    return f"{{per_label: {most}, draws: 1}}"


def _share_beginning(labels: Sequence[str]) -> bool:
    """Whether two labels may share their first token."""
    starts = [re.split(r"[\W_]+", label.casefold())[0][:4] or label.casefold()[:4] for label in labels]
    return len(set(starts)) < len(starts)


def _choose_answer_tokens(sketch: TaskSketch) -> int:
    return _round_up(sketch.answer_bytes[1] / 2 + 16, 16, 32, 1024)


def _render_students(sketch: TaskSketch) -> list[str]:
    student = sketch.student or ("minilm" if sketch.has_labels else "smollm2")
    both = {"minilm": _build_minilm(sketch), "smollm2": _build_smollm2(sketch)}
    lines = ["students:", *_indent_student(student, both[student])]
    other = "smollm2" if student == "minilm" else "minilm"
    if sketch.has_labels and not sketch.reasoning:
        size = "135M parameters, writes text" if other == "smollm2" else "22M parameters, an encoder: faster"
        lines.append(f"  # A second one ({size}); `distill run {sketch.name} --student {other}` trains it.")
        lines += [f"  # {line[2:]}" for line in _indent_student(other, both[other])]
    return lines


def _indent_student(name: str, settings: Mapping[str, object]) -> list[str]:
    return [f"  {name}:", *(f"    {key}: {value}" for key, value in settings.items())]


def _build_minilm(sketch: TaskSketch) -> dict[str, object]:
    return {
        "model": "all-minilm-l6-v2",
        "architecture": "encoder",
        "lora": "{rank: 16, alpha: 32, last_layers: 3}",
        "epochs": 5,
        "seed_only_epochs": 20,
        "batch_size": 16,
        "learning_rate": "1.0e-3",
        "soft_weight": 1.0,
        "max_tokens": _choose_prompt_tokens(sketch, 512),
    }


def _build_smollm2(sketch: TaskSketch) -> dict[str, object]:
    settings: dict[str, object] = {
        "preset": "smollm2  # on a GPU phi-4-mini, without prompt, learning_rate and max_tokens: it has its own",
        "prompt": "plain  # chat: the model's chat template, with more tokens per row",
        "epochs": 4 if sketch.has_labels else 3,
        "seed_only_epochs": 6,
        "batch_size": 16 if sketch.has_labels else 8,
        "learning_rate": "1.0e-3" if sketch.has_labels else "5.0e-4",
    }
    if sketch.has_labels:
        settings["soft_weight"] = 0.2
    settings["max_tokens"] = f"{_choose_prompt_tokens(sketch, 1024)}  # of a prompt; longer ones are cut"
    if not sketch.has_labels:
        settings["answer_tokens"] = _choose_answer_tokens(sketch)
    return settings


def _choose_prompt_tokens(sketch: TaskSketch, most: int) -> int:
    return _round_up(sketch.text_bytes[1] / 2.5 + 32, 64, 64, most)


def _render_curation(sketch: TaskSketch) -> list[str]:
    lines = ["# Which answers the student learns from. `distill filters` lists all filters, and what each dropped."]
    lines.append("curation:")
    if sketch.has_labels and not sketch.reasoning and sketch.teacher.is_embedded:
        lines += ["  filters:", "    min_confidence: 0.5"]
    else:
        lines.append("  filters: {}")
    if sketch.has_references:
        lines.append("    # gold: {min: 1}  # drop answers that differ from the one in your file")
    lines.append("  human_weight: 2.0  # a row that a person answered counts twice in training")
    rows = sketch.parts["seeds"] + sketch.parts["examples"]
    if rows < 40:
        lines.append(f"  min_rows: {max(1, rows // 2)}  # fewer rows block training")
    return lines


def _round_up(value: float, step: int, least: int, most: int) -> int:
    return int(min(max(math.ceil(value / step) * step, least), most))
