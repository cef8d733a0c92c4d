"""Whether a training fits in memory is known before it starts, and `micro_batch_size: auto` computes what fits."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from distill_dagster.config import LoraSpec, StudentSpec
from distill_dagster.config.checkpoint import CheckpointSpec
from distill_dagster.config.shrink import ShrinkSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.memory import Memory, measure_memory
from distill_dagster.student import loading, memory
from distill_dagster.student.batches import MicroBatches
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TrainingLog, TrainRow
from tests.student.test_training import LABELS, SETTINGS
from tests.support.tiny_model import write_tiny_model

TEXTS = ["a", "a bell", "a plum cake", "rye bread and rolls", "my chain is rusty again", "a plum cake for the family"]
ROWS = [TrainRow(str(n), StudentPrompt.from_text(text), ("red", "blue")[n % 2]) for n, text in enumerate(TEXTS)]
PLENTY = Memory(2**40, 2**40)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudentSpec:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny"), size=32)
    settings: dict[str, Any] = {"batch_size": 6, "learning_rate": 1e-2, "patience": None, "prompt": "plain"}
    return StudentSpec(model=str(model), architecture="causal_lm", lora=LoraSpec(rank=4), **settings)


@pytest.fixture
def student(spec: StudentSpec, tmp_path: Path) -> CausalStudent:
    made = CausalStudent(spec, LABELS, SETTINGS, tmp_path)
    made.add_adapter()
    return made


def count_bytes(spec: StudentSpec, **update: Any) -> int:
    changed = spec.model_copy(update=update)
    return memory.estimate_model_bytes(memory.build_skeleton(changed, Path()), changed)


def test_bytes_of_a_model_follow_from_its_config(spec: StudentSpec, student: CausalStudent) -> None:
    base = student.base.parameters
    adapter = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    assert count_bytes(spec) == 4 * base + (4 + 4 + 8) * adapter
    assert count_bytes(spec, dtype="bfloat16") == 2 * base + (4 + 4 + 8) * adapter
    assert count_bytes(spec, method="full") == (4 + 4 + 8) * base
    assert count_bytes(spec, method="full", patience=2) == (4 + 4 + 8 + 4) * base  # a copy of the best epoch
    assert count_bytes(spec, method="qlora", dtype="bfloat16") < count_bytes(spec, dtype="bfloat16")


@pytest.mark.parametrize("update", [{"target_modules": ["q_proj"]}, {"last_layers": 1}])
def test_only_what_an_adapter_trains_is_counted(spec: StudentSpec, tmp_path: Path, update: dict[str, Any]) -> None:
    changed = spec.model_copy(update={"lora": LoraSpec(rank=64, **update)})
    made = CausalStudent(changed, LABELS, SETTINGS, tmp_path)
    made.add_adapter()
    adapter = sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert count_bytes(changed) == 4 * made.base.parameters + (4 + 4 + 8) * adapter
    assert torch.rand(1) == expected, "counting changes no random numbers"


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_an_encoder_is_counted_without_its_pooler(method: str, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    settings: dict[str, Any] = {"method": method} | ({"lora": LoraSpec(rank=4)} if method != "full" else {})
    spec = StudentSpec(model=str(tmp_path / "bert"), architecture="encoder", patience=None, **settings)
    model = transformers.AutoModel.from_pretrained(tmp_path / "bert")
    total = sum(p.numel() for p in model.parameters())
    made = loading.make_trainable(model, spec, "FEATURE_EXTRACTION", loading.POOLER)
    names = {name for name, p in made.named_parameters() if p.requires_grad}
    assert names
    assert not any("pooler" in name for name in names)
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert count_bytes(spec) == 4 * total + (12 if method == "full" else 16) * trained


def test_processes_share_the_memory_of_a_processor(spec: StudentSpec, tmp_path: Path) -> None:
    enough = Memory(2**40, round(count_bytes(spec) / memory.SHARE_OF_FREE) + 1)
    memory.check_model_fits(spec, tmp_path, enough)
    with pytest.raises(DistillError, match="are free for each of 2 processes"):
        memory.check_model_fits(spec, tmp_path, enough, ranks=2)


@pytest.mark.usefixtures("student")  # else pytest keeps the warning of a first import, and with it frames and a model
def test_a_finished_training_is_not_in_memory_when_the_next_one_is_checked(spec: StudentSpec, tmp_path: Path) -> None:
    finished: list[weakref.ref[torch.nn.Module]] = []

    class Recorded(CausalStudent):
        def add_adapter(self) -> None:
            super().add_adapter()
            finished.append(weakref.ref(self.model))

    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distill_dagster.student.train.choose_student_class", lambda *_: Recorded)
            train_adapter(spec, LABELS, SETTINGS, ROWS, [], tmp_path / "out", tmp_path, epochs=1)
        memory.measure_training_memory()
        assert [model() for model in finished] == [None]
    finally:
        gc.enable()


def test_what_was_measured_is_not_kept(student: CausalStudent) -> None:
    """A graph that nothing frees would be in memory during the training, and after it."""

    def count_tensors() -> int:
        gc.collect()
        return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())

    items, before = student.encode(ROWS[:2]), count_tensors()
    assert memory.measure_kept_bytes(student, items) > 0
    assert count_tensors() == before


def test_a_skeleton_has_no_values_and_fewer_layers_if_shrunk(spec: StudentSpec) -> None:
    skeleton = memory.build_skeleton(spec, Path())
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    shrunk = memory.build_skeleton(spec.model_copy(update={"shrink": ShrinkSpec(layers=1)}), Path())
    assert sum(p.numel() for p in shrunk.parameters()) < sum(p.numel() for p in skeleton.parameters())


def test_a_model_that_is_too_large_is_refused_with_what_would_fit(spec: StudentSpec, tmp_path: Path) -> None:
    full = StudentSpec(model=spec.model, architecture="causal_lm", method="full")
    memory.check_model_fits(full, tmp_path, PLENTY)
    lora = full.model_copy(update={"method": "lora"})
    between = round((count_bytes(lora) + count_bytes(full)) / 2 / memory.SHARE_OF_FREE)
    memory.check_model_fits(lora, tmp_path, Memory(2**40, between))
    with pytest.raises(DistillError, match=r"`method: full` in float32 needs .* free\. Use one of.*`method: lora`"):
        memory.check_model_fits(full, tmp_path, Memory(2**40, between))
    with pytest.raises(DistillError, match="Use a smaller model"):
        memory.check_model_fits(full, tmp_path, Memory(2**40, 1000))


def test_what_backward_keeps_grows_with_the_rows_and_leaves_the_weights_out(student: CausalStudent) -> None:
    *_, longest = sorted(student.encode(ROWS), key=lambda item: item["length"])
    one = memory.measure_kept_bytes(student, [longest])
    assert memory.measure_kept_bytes(student, [longest] * 4) == pytest.approx(4 * one, rel=0.1)
    short = student.encode(ROWS)[0]
    assert memory.measure_kept_bytes(student, [short]) < one
    hidden = longest["length"] * 32 * 4
    assert one > 2 * 10 * hidden  # two layers, each with more than ten tensors of this size
    weights = sum(p.numel() * p.element_size() for p in student.model.parameters())
    assert memory.measure_kept_bytes(student, [short]) < weights


def test_measuring_changes_neither_the_mode_nor_the_random_numbers(student: CausalStudent) -> None:
    student.model.eval()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    memory.measure_kept_bytes(student, student.encode(ROWS))
    assert torch.rand(1) == expected
    assert not student.model.training


def test_a_step_is_computed_at_once_if_half_of_the_memory_is_enough(student: CausalStudent) -> None:
    items = student.encode(ROWS)
    assert memory.choose_micro_batches(student, items, memory=PLENTY).cut(items) == [items]
    row = memory.BACKWARD_FACTOR * memory.measure_kept_bytes(student, [max(items, key=lambda i: i["length"])])
    some = memory.choose_micro_batches(student, items, memory=Memory(round(5 * row), 2**40))  # half: 2.5 rows
    parts = some.cut(items)
    longest = max(item["length"] for item in items)
    assert some.tokens == 2 * longest
    assert 1 < len(parts) < len(items)
    assert sorted(item["length"] for part in parts for item in part) == sorted(item["length"] for item in items)
    assert all(len(part) * max(item["length"] for item in part) <= 2 * longest for part in parts)


def test_a_fixed_micro_batch_is_refused_if_it_does_not_fit(student: CausalStudent) -> None:
    items = student.encode(ROWS)
    row = memory.BACKWARD_FACTOR * memory.measure_kept_bytes(student, [max(items, key=lambda i: i["length"])])
    optimizer = 12 * sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    free = Memory(2**40, round((3.5 * row + optimizer) / memory.SHARE_OF_FREE))
    student.spec = student.spec.model_copy(update={"micro_batch_size": 3})
    assert [len(part) for part in memory.choose_micro_batches(student, items, memory=free).cut(items)] == [3, 3]
    student.spec = student.spec.model_copy(update={"micro_batch_size": 4})
    with pytest.raises(DistillError, match=r"`micro_batch_size: 4` needs about .* 3 rows of the longest, \d+ tokens"):
        memory.choose_micro_batches(student, items, memory=free)


def test_what_is_needed_once_is_not_counted_per_row(spec: StudentSpec, tmp_path: Path) -> None:
    """Full fine-tuning in bfloat16 keeps a copy of all weights, however many rows there are."""
    made = CausalStudent(make_full(spec), LABELS, SETTINGS, tmp_path, "float32")
    made.add_adapter()
    items = made.encode(ROWS)
    longest = max(items, key=lambda item: item["length"])
    copies = 2 * sum(p.numel() for name, p in made.model.named_parameters() if "proj" in name)
    one, four = (memory.BACKWARD_FACTOR * memory.measure_kept_bytes(made, [longest] * rows) for rows in (1, 4))
    assert 4 * one - four > 2 * copies
    optimizer = 12 * sum(p.numel() for p in made.model.parameters())
    free = Memory(2**40, round((1.05 * four + optimizer) / memory.SHARE_OF_FREE))
    made.spec = made.spec.model_copy(update={"micro_batch_size": 4})
    assert memory.choose_micro_batches(made, items, memory=free) == MicroBatches(rows=4)
    made.spec = made.spec.model_copy(update={"micro_batch_size": 6})
    with pytest.raises(DistillError, match=r"`micro_batch_size: 6` needs about .* 4 rows of the longest"):
        memory.choose_micro_batches(made, items, memory=free)
    made.spec = made.spec.model_copy(update={"micro_batch_size": "auto"})
    assert memory.choose_micro_batches(made, items, memory=free) == MicroBatches(None, 4 * longest["length"])


def make_full(spec: StudentSpec) -> StudentSpec:
    settings = spec.model_dump(exclude={"lora", "method", "dtype"}, exclude_unset=True)
    return StudentSpec(**settings, method="full", dtype="bfloat16")


@pytest.mark.parametrize(("batch_size", "rows", "ranks"), [(2, 6, 1), (64, 2, 1), (4, 6, 2)])
def test_a_step_has_no_more_rows_than_there_are(batch_size: int, rows: int, ranks: int, student: CausalStudent) -> None:
    items = student.encode(ROWS)[-rows:]
    row = memory.BACKWARD_FACTOR * memory.measure_kept_bytes(student, [max(items, key=lambda i: i["length"])])
    optimizer = 12 * sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    free = Memory(2**40, round(ranks * (2.5 * row + optimizer) / memory.SHARE_OF_FREE))
    student.spec = student.spec.model_copy(update={"micro_batch_size": 64, "batch_size": batch_size})
    assert memory.choose_micro_batches(student, items, ranks, free) == MicroBatches(rows=64)
    student.spec = student.spec.model_copy(update={"micro_batch_size": "auto"})
    assert memory.choose_micro_batches(student, items, ranks, free) == MicroBatches(rows=None)


def test_training_in_little_memory_gives_the_same_loss(
    spec: StudentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, total: int) -> list[float]:
        monkeypatch.setattr(memory, "measure_training_memory", lambda: Memory(total, 2**40))
        log = train_adapter(spec, LABELS, SETTINGS, ROWS, [], tmp_path / name, tmp_path, epochs=3)
        return [loss for *_, loss in log.losses]

    calls: list[int] = []
    real = CausalStudent.collate

    def collate(self: CausalStudent, items: Any) -> Any:
        calls.append(len(items))
        return real(self, items)

    monkeypatch.setattr(CausalStudent, "collate", collate)
    whole = train("whole", 2**40)
    assert max(calls) == len(ROWS)
    calls.clear()
    assert train("cut", 1_000_000) == pytest.approx(whole, abs=1e-5)
    assert max(calls) < len(ROWS)


def test_a_training_that_goes_on_cuts_its_steps_as_before(
    spec: StudentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory changes, and a step that is cut in other places is rounded otherwise."""
    spec = spec.model_copy(update={"checkpoint": CheckpointSpec(every_steps=1)})

    def train(name: str, total: int, stop_at: int | None = None) -> TrainingLog:
        def listen(made: progress.Progress) -> None:
            if made.done == stop_at:
                raise DistillError("stopped")

        monkeypatch.setattr(memory, "measure_training_memory", lambda: Memory(total, 2**40))
        with progress.listen_to_progress(listen):
            out, work = tmp_path / name, tmp_path / "work" / name
            return train_adapter(spec, LABELS, SETTINGS, ROWS, [], out, tmp_path, epochs=3, work=work)

    whole = train("whole", 1_000_000)
    assert whole.micro_batch.endswith(" tokens")
    with pytest.raises(DistillError, match="stopped"):
        train("resumed", 1_000_000, stop_at=2)
    resumed = train("resumed", 2**40)
    assert (resumed.resumed_at, resumed.micro_batch) == ([1], whole.micro_batch)
    assert resumed.losses == whole.losses
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]
    assert train("plenty", 2**40).micro_batch == "whole step"


def test_steps_are_cut_again_if_the_cut_of_before_does_not_fit(student: CausalStudent) -> None:
    items = student.encode(ROWS)
    longest = max(item["length"] for item in items)
    row = memory.BACKWARD_FACTOR * memory.measure_kept_bytes(student, [max(items, key=lambda i: i["length"])])
    optimizer = 12 * sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    free = Memory(2**40, round((2.5 * row + optimizer) / memory.SHARE_OF_FREE))
    for saved, expected in [(1, 1), (2, 2), (3, 2)]:
        before = MicroBatches(None, saved * longest)
        chosen = memory.choose_micro_batches(student, items, memory=free, saved=before)
        assert chosen == MicroBatches(None, expected * longest)
    assert memory.choose_micro_batches(student, items, memory=free, saved=MicroBatches(None)).tokens == 2 * longest
    student.spec = student.spec.model_copy(update={"micro_batch_size": 2})
    assert memory.choose_micro_batches(student, items, memory=free, saved=MicroBatches(None)) == MicroBatches(2)


def test_a_row_that_does_not_fit_is_named_before_training(
    spec: StudentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = round(1.3 * count_bytes(spec))
    monkeypatch.setattr(memory, "measure_training_memory", lambda: Memory(free, free))
    long = replace(ROWS[0], prompt=StudentPrompt.from_text("a bell " * 200))
    with pytest.raises(DistillError, match=r"row has \d+ tokens.*About \d+ tokens would fit: lower `max_tokens`"):
        train_adapter(spec, LABELS, SETTINGS, [long], [], tmp_path / "out", tmp_path)


def test_micro_batches_keep_the_order_of_rows_without_a_limit_of_tokens() -> None:
    items = [{"length": length} for length in (9, 2, 7, 3, 8)]
    assert MicroBatches(2).cut(items) == [items[:2], items[2:4], items[4:]]
    assert MicroBatches(None, tokens=10).cut(items) == [
        [{"length": 2}, {"length": 3}], [{"length": 7}], [{"length": 8}], [{"length": 9}],
    ]  # fmt: skip
    assert MicroBatches(None).cut([]) == []


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    machine = measure_memory(tmp_path)
    assert machine.total == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_memory(tmp_path).total == machine.total
    (tmp_path / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.current").write_text("30000000\n")
    (tmp_path / "memory.stat").write_text("anon 20000000\ninactive_file 5000000\n")
    assert measure_memory(tmp_path) == Memory(50_000_000, 25_000_000)
    with (tmp_path / "memory.stat").open("a") as file:
        file.write("active_file 3000000\nslab 2000000\nslab_reclaimable 1000000\n")
    assert measure_memory(tmp_path) == Memory(50_000_000, 29_000_000)


def test_a_container_of_cgroup_version_1_has_its_limit_too(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # no limit
    (folder / "memory.usage_in_bytes").write_text("30000000\n")
    (folder / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 5000000\ntotal_active_file 3000000\n")
    assert measure_memory(tmp_path).total == psutil.virtual_memory().total
    (folder / "memory.limit_in_bytes").write_text("50000000\n")
    assert measure_memory(tmp_path) == Memory(50_000_000, 28_000_000)
