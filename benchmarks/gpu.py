"""Train students on a GPU by each method, up to 7 billion weights, and compare with TRL's SFTTrainer in the same run.

Usage: python benchmarks/gpu.py [--only NAME ...] [--rows 480] [--models FOLDER] [--tiny] [--json FILE]

Tickets of the bundled task with the recorded teacher's answers, written by the student (`objective: answer`), in steps
of 16 rows and one epoch. `135m` is the packaged SmolLM2. `1b` and `7b` have the shape of Llama 3.2 1B and Llama 3.1 8B,
with SmolLM2's vocabulary and random weights: speed and memory do not depend on what the weights know. Each training
runs in a process of its own, after a first short one that loads the kernels.

For each NAME, size_method: tokens per second without padding, first and last loss, peak memory of the GPU in MiB
(`peak_mb`), what the check before training expects of weights and optimizer alone (`expected_mb`), seconds of loading,
training and saving (`whole_s`), bytes of what was saved, and whether a saved student that is loaded twice answers
alike (`reload_equal`). `ratio_trl_*` is tokens per second over those of SFTTrainer: bfloat16 weights, the same order of
rows, no gradient checkpointing.

Without a GPU, --tiny trains a model of two layers on the processor, to try the script.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import training
from common import name_device, wanted, write_result

from distill_dagster.config import StudentSpec
from distill_dagster.core import models
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "dora": {"method": "dora"},
    "rslora": {"method": "rslora"},
    "full": {"method": "full", "learning_rate": 2e-5},
    "lora_float16": {"method": "lora", "dtype": "float16"},
    "lora_auto": {"method": "lora", "micro_batch_size": "auto", "batch_size": 64},
}
NAMES = (
    "135m_lora",
    "135m_qlora",
    "135m_lora_float16",
    "1b_lora",
    "1b_qlora",
    "1b_dora",
    "1b_rslora",
    "1b_full",
    "1b_lora_auto",
    "7b_lora",
    "7b_qlora",
)
PEERS = ("135m_lora", "1b_lora", "1b_qlora", "7b_qlora")
"""What SFTTrainer trains as well."""
WARM_UP_ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--models", type=Path, help="where the random models are kept (default: a temporary folder)")
    parser.add_argument("--tiny", action="store_true", help="two layers, on any machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loop", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.quick = arguments.tiny
    if arguments.loop:
        run = train_with_us if arguments.loop == "ours" else train_with_trl
        print(json.dumps(run(arguments.only[0], arguments.rows, arguments.models, arguments.tiny)))
        return
    target = wanted(arguments, "gpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.models or Path(temporary)
        figures: dict[str, Any] = {"rows": arguments.rows, "device": name_device()}
        for name in arguments.only:
            found = measure("ours", name, arguments, folder)
            figures |= {f"{key}_{name}": value for key, value in found.items()}
            if name in PEERS and "failed" not in found:
                peer = measure("trl", name, arguments, folder)
                figures |= {f"trl_{key}_{name}": value for key, value in peer.items()}
                if "failed" not in peer:
                    figures[f"ratio_trl_{name}"] = round(found["tokens_s"] / peer["tokens_s"], 2)
                    figures[f"peak_ratio_trl_{name}"] = round(found["peak_mb"] / peer["peak_mb"], 3)
            print(json.dumps({key: value for key, value in figures.items() if key.endswith(name)}), flush=True)
            write_result(target, figures)


def measure(loop: str, name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train in a process of its own. One that fails costs its own figures alone."""
    command = [sys.executable, __file__, "--loop", loop, "--only", name, "--rows", str(arguments.rows)]
    command += ["--models", str(folder), *(["--tiny"] if arguments.tiny else [])]
    settings = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr, flush=True)
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_model(size: str, folder: Path, tiny: bool) -> str:
    """The name of the model, which is made once with random weights unless it is packaged."""
    import torch
    import transformers

    if size == "135m" and not tiny:
        return "smollm2-135m-instruct"
    made = folder / f"{size}{'-tiny' if tiny else ''}"
    if not made.exists():
        source = models.resolve_model("smollm2-135m-instruct", training.MODELS).location
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        shape = TINY if tiny else SHAPES[size]
        config = transformers.LlamaConfig(
            **shape,
            vocab_size=len(tokenizer),
            num_key_value_heads=8,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype=torch.bfloat16,
        )
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    return str(made)


def build_spec(name: str, folder: Path, tiny: bool) -> StudentSpec:
    """The student of this size and method."""
    size, _, method = name.partition("_")
    lora = {} if method == "full" else {"lora": {"rank": 16, "alpha": 32}}
    common: dict[str, Any] = {
        "model": make_model(size, folder, tiny),
        "architecture": "causal_lm",
        "prompt": "plain",
        "dtype": "bfloat16",
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 2e-4,
        "objective": "answer",
        "answer_tokens": 16,
        "patience": None,
    }
    return StudentSpec.model_validate(common | lora | SETTINGS[method])


def read_rows(count: int) -> list[TrainRow]:
    """The first tickets of the recording. The answer is a text, as it is in a task without labels."""
    recorded = [json.loads(line) for line in training.RECORDED.read_text(encoding="utf-8").splitlines()[:count]]
    return [
        TrainRow(str(n), StudentPrompt.from_text(row["text"]), row["label"], target=row["label"])
        for n, row in enumerate(recorded)
    ]


def train_with_us(name: str, count: int, folder: Path, tiny: bool) -> dict[str, Any]:
    """Train with `train_adapter`, as an asset does, load what it saved twice, and compare the answers."""
    from distill_dagster.student.memory import build_skeleton, estimate_model_bytes
    from distill_dagster.student.predict import load_predictor
    from distill_dagster.student.train import train_adapter

    spec, rows = build_spec(name, folder, tiny), read_rows(count)
    settings = TaskSettings(item="Ticket")
    expected = estimate_model_bytes(build_skeleton(spec, training.MODELS), spec)
    with tempfile.TemporaryDirectory() as temporary:
        train_adapter(spec, [], settings, rows[:WARM_UP_ROWS], [], Path(temporary) / "warm-up", training.MODELS)
        reset_peak()
        started = time.perf_counter()
        out = Path(temporary) / "student"
        log = train_adapter(spec, [], settings, rows, [], out, training.MODELS)
        seconds = time.perf_counter() - started
        saved = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
        asked = [row.prompt for row in rows[:8]]
        answers = [
            [one.label for one in load_predictor(spec, [], settings, training.MODELS, out).predict(asked)]
            for _ in range(2)
        ]
    losses = [loss for _, _, loss in log.losses]
    if not all(math.isfinite(loss) for loss in losses):
        raise ValueError(f"{name}: a loss is not finite: {losses}")
    return {
        "tokens_s": log.tokens_per_s,
        "train_s": log.seconds,
        "whole_s": round(seconds, 1),
        "peak_mb": log.peak_mb,
        "expected_mb": round(expected / 2**20, 1),
        "loss_first": round(losses[0], 4),
        "loss_last": round(losses[-1], 4),
        "steps": log.steps,
        "micro_batch": log.micro_batch,
        "trainable": log.trainable_parameters,
        "total": log.total_parameters,
        "saved_mb": round(saved / 2**20, 1),
        "reload_equal": answers[0] == answers[1],
    }


def train_with_trl(name: str, count: int, folder: Path, tiny: bool) -> dict[str, Any]:
    """Train the same rows in the same order with SFTTrainer, which loads the kernels in a short training first."""
    import torch
    import transformers
    from peft import LoraConfig

    from distill_dagster.student import loading
    from distill_dagster.student.batches import LengthBatchSampler
    from distill_dagster.student.free_text import FreeTextStudent

    spec, rows = build_spec(name, folder, tiny), read_rows(count)
    student = FreeTextStudent(
        spec.model_copy(update={"method": "lora", "quantization": "none"}),
        [],
        TaskSettings(item="Ticket"),
        training.MODELS,
    )
    items = student.encode(rows)
    del student
    lengths = [item["length"] for item in items]
    order = list(LengthBatchSampler(lengths, spec.batch_size, spec.seed))
    location = models.resolve_model(spec.model, training.MODELS).location
    options = loading.build_nf4_options(torch.bfloat16) if spec.quantization == "nf4" else {}

    def train(batches: list[list[int]], where: Path) -> tuple[float, list[float]]:
        model = transformers.AutoModelForCausalLM.from_pretrained(location, dtype=torch.bfloat16, **options)
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=spec.lora.rank, lora_alpha=spec.lora.alpha, target_modules="all-linear"
        )
        trainer = training.build_sft_trainer(
            spec, model, items, batches, where, lora, bf16=False, gradient_checkpointing=False, max_length=None
        )
        reset_peak()
        started = time.perf_counter()
        trainer.train()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return seconds, [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]

    with tempfile.TemporaryDirectory() as temporary:
        train(order[: WARM_UP_ROWS // spec.batch_size], Path(temporary) / "warm-up")
        seconds, losses = train(order, Path(temporary) / "trl")
    return {
        "tokens_s": round(sum(lengths) / seconds, 1),
        "peak_mb": measure_peak(),
        "loss_first": round(losses[0], 4),
        "loss_last": round(losses[-1], 4),
    }


def reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_peak() -> float:
    """The peak memory in MiB: of torch on the GPU if there is one, else of this process."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else training.peak_mb()


if __name__ == "__main__":
    main()
