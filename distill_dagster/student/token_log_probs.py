"""A local teacher's most probable tokens along the answers of training rows: captured once, kept as Parquet.

The teacher reads the token ids of the student, prompt and answer, so both must have one vocabulary. Of each position
of an answer the `top_k` largest log-probabilities are kept. A file holds those of one teacher, vocabulary and setting.
Its rows are found by their token ids, so a changed prompt or answer is captured again, and nothing else.

Of several processes that train one student, the first alone loads the teacher. Trainings at the same time may share a
file: it only grows, and each of them adds its rows under a lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core import files, models, progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_content
from distill_dagster.student import loading
from distill_dagster.student.memory import check_teacher_fits
from distill_dagster.student.ranks import is_first_rank, wait_for_ranks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from distill_dagster.config import LabelSpec
    from distill_dagster.config.objective import TokenKdObjectiveSpec
    from distill_dagster.student.causal import CausalStudent
    from distill_dagster.student.free_text import FreeTextStudent
    from distill_dagster.student.types import TrainedStudent, TrainRow

    WritingStudent = CausalStudent | FreeTextStudent

SCHEMA = pl.Schema(
    {
        "completion_id": pl.String(),
        "prompt_id": pl.String(),
        "tokenizer": pl.String(),
        "sequence": pl.String(),
        "tokens": pl.List(pl.Int32),
        "log_probs": pl.List(pl.Float32),
    }
)
"""`sequence` is the hash of the token ids and of how many of them are the answer. `tokens` and `log_probs` have the
`top_k` values of one position after those of another. A row that a person answered has no `completion_id`."""


@dataclass(frozen=True)
class TeacherModel:
    """What gives the log-probabilities: a base, or one with what was trained in a folder.

    `identity` changes whenever the weights or their number format do. `is_trained` says that it learned a prompt.
    """

    name: str
    identity: str
    is_trained: bool
    load: Callable[[], WritingStudent]


def hash_vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of the ids of all tokens. Probabilities of tokens can be compared if it is equal."""
    return hash_content(sorted(tokenizer.get_vocab().items()))


def add_teacher_log_probs(
    student: WritingStudent,
    items: list[dict[str, Any]],
    rows: Sequence[TrainRow],
    teacher: TeacherModel,
    objective: TokenKdObjectiveSpec,
    folder: Path | None,
) -> int:
    """Add `teacher_tokens` and `teacher_log_probs`, each of shape (answer tokens, top_k), to every item of a student.

    Args:
        folder: where captured values are kept. Without a folder they are captured in every training.

    Returns:
        The number of rows that the teacher had to read; 0 for all ranks but the first, which wait for it.

    Raises:
        DistillError: the teacher has another vocabulary.
        ModelError: it cannot be found or loaded.
    """
    import numpy as np
    import torch

    tokenizer = hash_vocabulary(student.tokenizer)
    key = hash_content([teacher.identity, tokenizer, objective.top_k, objective.temperature])
    file = folder / f"{key[:32]}.parquet" if folder is not None else None
    sequences = [_hash_sequence(item) for item in items]
    if file is not None and not is_first_rank():
        wait_for_ranks()
    known = _read_captured(file, sequences)
    have = set(known["sequence"])
    missing = {sequence: place for place, sequence in enumerate(sequences) if sequence not in have}
    if missing:
        places = list(missing.values())
        captured = _capture(
            student, [items[place] for place in places], [rows[place] for place in places], teacher, objective
        )
        columns: dict[str, list[Any]] = {
            "completion_id": [rows[place].completion_id for place in places],
            "prompt_id": [rows[place].prompt_id for place in places],
            "tokenizer": [tokenizer] * len(places),
            "sequence": list(missing),
            "tokens": [pl.Series(tokens.flatten().numpy(), dtype=pl.Int32) for tokens, _ in captured],
            "log_probs": [pl.Series(log_probs.flatten().numpy(), dtype=pl.Float32) for _, log_probs in captured],
        }
        new = pl.DataFrame({name: pl.Series(values, dtype=SCHEMA[name]) for name, values in columns.items()})
        known = pl.concat([known, new])
        if file is not None:
            _add_captured(file, new)
    if file is not None and is_first_rank():
        wait_for_ranks()
    found = {sequence: place for place, sequence in enumerate(known["sequence"])}
    for item, sequence in zip(items, sequences, strict=True):
        for name, kind in (("tokens", np.int64), ("log_probs", np.float32)):
            array = known[name][found[sequence]].to_numpy().astype(kind).reshape(item["target"], -1)
            item[f"teacher_{name}"] = torch.from_numpy(array)
    return len(missing)


def _read_captured(file: Path | None, sequences: Sequence[str]) -> pl.DataFrame:
    """The rows of a file with one of these hashes. It has those of all datasets, so the others are not read."""
    if file is None or not file.exists():
        return pl.DataFrame(schema=SCHEMA)
    return pl.scan_parquet(file).filter(pl.col("sequence").is_in(sequences)).collect()


def _add_captured(file: Path, new: pl.DataFrame) -> None:
    """Add rows to a file, next to those that another training has added since it was read."""
    with files.lock_file(file.with_suffix(".lock")):
        before = pl.read_parquet(file) if file.exists() else pl.DataFrame(schema=SCHEMA)
        merged = pl.concat([before, new.join(before, on="sequence", how="anti")]).sort("sequence")
        temporary = files.get_temporary_path(file)
        try:
            merged.write_parquet(temporary, compression="zstd")
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def _hash_sequence(item: dict[str, Any]) -> str:
    return hashlib.sha256(f"{item['target']}:{item['ids']}".encode()).hexdigest()


def _capture(
    student: WritingStudent,
    items: list[dict[str, Any]],
    rows: Sequence[TrainRow],
    teacher: TeacherModel,
    objective: TokenKdObjectiveSpec,
    batch_size: int = 8,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The most probable tokens and their log-probabilities of each item, each of shape (answer tokens, top_k)."""
    import torch

    reader = teacher.load()
    if reader.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise DistillError(
            f"objective token_kd: the teacher {teacher.name} has another vocabulary than {student.spec.model}, so "
            f"probabilities of tokens cannot be compared. Use a teacher of the same family, or soft_label or answer."
        )
    if teacher.is_trained and reader.encode(list(rows[:1]))[0]["ids"] != items[0]["ids"]:
        raise DistillError(
            f"objective token_kd: the {teacher.name} was trained on other prompts than {student.spec.model} is. Give "
            f"both students the same `prompt`, `max_tokens` and `answer_tokens`."
        )
    size = student.model.get_output_embeddings().weight.shape[0]
    top_k = min(objective.top_k, size)
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    order = sorted(range(len(items)), key=lambda place: items[place]["length"])
    reader.model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = student.collate([items[place] for place in places])
            batch = {name: value.to(reader.device) for name, value in batch.items()}
            logits = reader.compute_answer_logits(batch)
            log_probs = (logits[:, :size].float() / objective.temperature).log_softmax(-1)
            values, tokens = log_probs.topk(top_k)
            counts = [items[place]["target"] for place in places]
            found |= zip(places, zip(tokens.cpu().split(counts), values.cpu().split(counts), strict=True), strict=True)
            done = min(start + batch_size, len(order))
            progress.report_progress(f"reading answers with {teacher.name}", done, len(order))
    return [found[place] for place in range(len(items))]


def find_teacher_model(
    student: WritingStudent,
    objective: TokenKdObjectiveSpec,
    labels: list[LabelSpec],
    models_folder: Path,
    assistant: TrainedStudent | None,
) -> TeacherModel:
    """The teacher of an objective: the model that it names, or the student that teaches this one.

    Args:
        assistant: the settings of the student that teaches this one, and the folder of what was trained.

    Raises:
        DistillError: the objective names no model, and no student teaches this one.
        ModelError: the model cannot be found.
    """
    if objective.teacher is not None:
        resolved = models.resolve_model(objective.teacher, models_folder, objective.revision)
        # Of a model from the hub the commit counts, so that a branch that moves is another teacher.
        revision = objective.revision if resolved.sha256 else _find_commit(objective.teacher, resolved)
        # Only its logits are used: the student's own prompt is what it reads.
        changed = {"model": objective.teacher, "revision": revision, "prompt": "plain"}
        changed |= {"method": "lora", "quantization": "none", "shrink": None}
        spec = student.spec.model_copy(update=changed)
        identity = hash_content([resolved.sha256 or f"{resolved.hub_id}@{revision}", _name_dtype(spec.dtype)])

        def load_base() -> WritingStudent:
            check_teacher_fits(spec, models_folder)
            return type(student)(spec, labels, student.settings, models_folder)

        return TeacherModel(objective.teacher, identity, False, load_base)
    if assistant is None:
        raise DistillError("objective token_kd has no teacher. Set `objective.teacher`, or `teacher: student:<name>`.")
    given, folder = assistant
    merge = given.quantization == "none" and given.method != "full"

    def load() -> WritingStudent:
        base = loading.find_trained_base(given, folder)
        check_teacher_fits(base.model_copy(update={"dtype": "float32"} if merge else {}), models_folder)
        reader = type(student)(base, labels, student.settings, models_folder, "float32" if merge else None)
        reader.load_adapter(folder, merge)
        if merge:
            reader.to_dtype(loading.get_torch_dtype(given.dtype))
        return reader

    weights = sorted(folder.glob("*.safetensors"))
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights]
    identity = hash_content([given.model, given.quantization, _name_dtype(given.dtype), *hashes])
    return TeacherModel(f"student {given.model}", identity, True, load)


def _find_commit(name: str, resolved: models.ResolvedModel) -> str | None:
    """The commit of a model from the hub, or the revision as it is given if it cannot be found."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    with models.convert_load_errors(name), models.silence_transformers():
        file = cached_file(resolved.location, "config.json", revision=resolved.revision)
    return extract_commit_hash(file, None) or resolved.revision


def _name_dtype(name: str) -> str:
    """The number format in which a teacher computes: `auto` is another one on another machine."""
    return str(loading.get_torch_dtype(name)).removeprefix("torch.")
