"""Measure the training of a causal student against TRL's SFTTrainer: tokens per second and peak memory.

Usage: python benchmarks/training.py [--quick] [--only NAME ...] [--json FILE]

The job: 298 tickets of the bundled task with the recorded teacher's answers, SmolLM2 135M, LoRA of rank 16 on all
linear layers, one epoch in steps of 16 rows, one thread. All loops minimize the mean negative log-likelihood of the
answers' tokens and start from the same weights. So with the same order of rows, the loss of the first step is equal up
to rounding (`loss_first_*`). Each loop runs in a process of its own. Tokens per second are those of the rows, without
padding, per second of CPU time.

ours              bfloat16 weights where the processor computes in it, as `dtype: auto`
trl               SFTTrainer with its defaults: bfloat16 autocast on float32 weights, gradient checkpointing, rows in
                  random order
trl_same_order    the same with our order of rows, which has less padding
trl_tuned         our order, bfloat16 weights, no gradient checkpointing, no padding (`padding_free`)
trl_tuned_eager   the same with plain attention
trl_tuned_padded  plain attention, rows padded to the longest of their step

`ratio_trl_tuned` compares with the fastest of the tuned loops, `peak_mb_ratio_trl_tuned` with the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from common import peak_mb, wanted, write_result

from distill_dagster.config import LoraSpec, StudentSpec
from distill_dagster.core import models
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow

RECORDED = PROJECT_FOLDER / "data" / "tasks" / "support_triage" / "recorded" / "frontier.jsonl"
MODELS = PROJECT_FOLDER / "data" / "models"
ROWS = 298
QUICK_STEPS = 3
TUNED = ("trl_tuned", "trl_tuned_eager", "trl_tuned_padded")
LOOPS = ("ours", *TUNED, "trl", "trl_same_order")
SPEC = StudentSpec(
    model="smollm2-135m-instruct",
    architecture="causal_lm",
    prompt="plain",
    dtype="auto",
    lora=LoraSpec(rank=16, alpha=32),
    batch_size=16,
    learning_rate=1e-3,
    patience=None,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps each, which say little")
    parser.add_argument("--only", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        print(json.dumps(run_loop(arguments.loop, QUICK_STEPS if arguments.quick else None)))
        return
    path = wanted(arguments, "training")
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path is not None and path.exists() else {}
    for loop in arguments.only:
        figures |= measure_loop(loop, arguments.quick)
        figures |= compute_ratios(figures)
        print(json.dumps(figures, indent=1), flush=True)
        write_result(path, figures)


def measure_loop(loop: str, quick: bool) -> dict[str, Any]:
    """Run a loop in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--loop", loop, *(["--quick"] if quick else [])]
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    peer = {} if loop == "ours" else {"trl_version": metadata.version("trl")}
    return {f"{name}_{loop}": value for name, value in found.items()} | peer


def compute_ratios(figures: dict[str, Any]) -> dict[str, float]:
    """How many times faster ours is, and its share of the peer's peak memory."""
    speed = {loop: figures[f"tokens_cpu_s_{loop}"] for loop in LOOPS if f"tokens_cpu_s_{loop}" in figures}
    ratios = {}
    if "ours" not in speed:
        return {}
    for loop in ("trl", "trl_same_order"):
        if loop in speed:
            ratios[f"ratio_{loop}"] = round(speed["ours"] / speed[loop], 2)
    tuned = [loop for loop in TUNED if loop in speed]
    if tuned:
        best = max(tuned, key=lambda loop: speed[loop])
        ratios["ratio_trl_tuned"] = round(speed["ours"] / speed[best], 2)
        peak = min(figures[f"peak_mb_{loop}"] for loop in tuned)
        ratios["peak_mb_ratio_trl_tuned"] = round(figures["peak_mb_ours"] / peak, 3)
    return ratios


def run_loop(loop: str, steps: int | None) -> dict[str, float]:
    """Train with one loop, at most so many steps. Loading the model is not part of the time."""
    from distill_dagster.student.batches import LengthBatchSampler
    from distill_dagster.student.free_text import FreeTextStudent

    student = FreeTextStudent(SPEC, [], TaskSettings(item="Ticket"), MODELS)
    items = student.encode(read_rows())
    sampler = LengthBatchSampler([item["length"] for item in items], SPEC.batch_size, SPEC.seed)
    order = list(sampler)
    for batch in order:  # the step's loss becomes the mean over its tokens, as in TRL
        tokens = sum(items[i]["target"] for i in batch)
        for i in batch:
            items[i]["weight"] = items[i]["target"] * len(batch) / tokens
    with tempfile.TemporaryDirectory() as folder:
        if loop == "ours":
            trainer = build_own_trainer(student, items, sampler, Path(folder), steps)
        else:
            del student
            trainer = build_trl_trainer(loop, items, order, Path(folder), steps)
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(items[i]["length"] for batch in order[: len(history)] for i in batch)
    if loop == "trl":  # its own order of rows
        tokens = history[-1]["num_tokens"]
    losses = [float(entry["loss"]) for entry in history]
    return {
        "tokens_cpu_s": round(tokens / seconds, 1),
        "cpu_s": round(seconds, 1),
        "peak_mb": peak_mb(),
        "steps": len(history),
        "loss_first": round(losses[0], 4),
        "loss_last": round(losses[-1], 4),
    }


def read_rows() -> list[TrainRow]:
    """Tickets with the recorded teacher's answers, drawn with a fixed seed."""
    recorded = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    drawn = random.Random(0).sample(recorded, ROWS)
    return [TrainRow(str(n), StudentPrompt.from_text(row["text"]), row["label"]) for n, row in enumerate(drawn)]


def build_own_trainer(student: Any, items: list[Any], sampler: Any, folder: Path, steps: int | None) -> Any:
    """The trainer of a student, with the settings that `train_adapter` gives it."""
    from distill_dagster.student.memory import choose_micro_batches
    from distill_dagster.student.trainer import StudentTrainer, build_arguments

    student.add_adapter()
    student.choose_attention(max(item["length"] for item in items))
    student.reuse_frozen_layers(student.list_sequences(items, []))
    arguments = build_arguments(SPEC, folder, 1, len(sampler))
    arguments.max_steps = steps or -1
    return StudentTrainer(student, items, sampler, choose_micro_batches(student, items), arguments, [])


def build_trl_trainer(loop: str, items: list[Any], order: list[list[int]], folder: Path, steps: int | None) -> Any:
    """TRL's SFTTrainer on the same token ids, with the same optimizer and schedule."""
    import peft
    import torch
    import transformers

    from distill_dagster.student import loading

    is_tuned, is_padded = loop in TUNED, loop == "trl_tuned_padded"
    tuned = {"bf16": False, "gradient_checkpointing": False, "padding_free": not is_padded, "max_length": None}
    location = models.resolve_model(SPEC.model, MODELS).location
    dtype = loading.get_torch_dtype(SPEC.dtype) if is_tuned else torch.float32
    attention = {"attn_implementation": "eager"} if is_padded or loop == "trl_tuned_eager" else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **attention)
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=SPEC.lora.rank, lora_alpha=SPEC.lora.alpha, target_modules="all-linear"
    )
    changes = {"max_steps": steps or -1} | (tuned if is_tuned else {})
    return build_sft_trainer(SPEC, model, items, None if loop == "trl" else order, folder, lora, **changes)


def build_sft_trainer(
    spec: StudentSpec,
    model: Any,
    items: list[Any],
    order: list[list[int]] | None,
    folder: Path,
    lora: Any,
    **changes: Any,
) -> Any:
    """TRL's SFTTrainer with the optimizer and schedule of a student. Without an order of rows it shuffles them."""
    import datasets
    import torch
    import transformers
    import trl

    from distill_dagster.student import loading

    batches = len(order) if order else -(-len(items) // spec.batch_size)
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(spec.warmup_ratio * batches),
        completion_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=loading.choose_device() == "cpu",
        seed=spec.seed,
        **changes,
    )
    rows = [
        {
            "input_ids": item["ids"],
            "completion_mask": [0] * (item["length"] - item["target"]) + [1] * item["target"],
        }
        for item in items
    ]

    class _Trainer(trl.SFTTrainer):
        def get_train_dataloader(self) -> Any:
            if order is None:
                return super().get_train_dataloader()
            return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)

    return _Trainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(model.config._name_or_path),
        peft_config=lora,
    )


if __name__ == "__main__":
    main()
