"""Measure the router: how much the student may answer when at most one point of accuracy may be lost.

Usage: python benchmarks/routing.py --data FOLDER [--home FOLDER] [--tracer FOLDER] [--draws 300] [--quick]
                                    [--json FILE]

FOLDER holds banking77 and commonsenseqa: questions with human labels and recorded teachers. --home keeps the trained
student. --tracer is a folder with the peer: pip install --no-deps --target FOLDER tracer-llm (it asks for numpy < 2.1,
and runs with a newer one).

Banking77: the teacher is a recorded frontier LLM of 2026 (see banking77.py). The student is minilm with the settings of
that benchmark, taught by the teacher's soft labels of 1,540 messages and by 231 human examples. The 847 messages of dev
and golden are the population.
CommonsenseQA: the teacher is PaLM, recorded. The student scores each choice by MiniLM embeddings of question and
choice, taught by PaLM's answers to 3,000 questions. It is weak on purpose: MiniLM knows little of the world. Another
2,000 questions are the population.

Each draw takes calibration rows from the population with replacement, chooses a threshold, and looks at the whole
population. Figures are means over the draws; without a prefix they are of Banking77 at a margin of 1 point with 500
rows:
    student_share     what the student answers; 0 where no threshold is certified
    broken_share      draws in which more than the margin was harmed: student wrong, teacher right
    broken_loss_share draws in which more accuracy than the margin was lost, harm less gain
    certified_share   draws with a threshold
    plain_*           a peer: the lowest threshold whose loss on the calibration rows is within the margin
    unlabelled_*      as ours, without human labels: disagreement with the teacher instead of harm
    cost_ratio        cost with the router over cost of the teacher alone
    tracer_*          tracer-llm on the same messages, with its own surrogates on the same embeddings; next to it ours_*
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from banking77 import STUDENTS, name_intent, read_json_lines, read_recording
from common import wanted, write_result

from distill_dagster.config import LabelSpec, StudentSpec
from distill_dagster.config.evaluation import MACHINE_USD_PER_HOUR
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.evaluation.risk_coverage import NEVER, RoutingRows, measure_router
from distill_dagster.release.routing.calibration import calibrate_router, list_thresholds
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.sentences import SentenceEmbedder
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import TRAINING_LOG_FILE, StudentPrompt, TaskSettings, TrainRow

MODELS = PROJECT_FOLDER / "data" / "models"
MARGINS = (0.01, 0.02, 0.03)
SIZES: dict[float, tuple[int, ...]] = {0.01: (96, 231, 500, 1000), 0.02: (231, 1000), 0.03: (231, 1000)}
"""Calibration rows by margin. Without human labels only the first margin is measured."""
TRACER_TARGETS, TRACER_SKIPPED = (0.95, 0.99), ("gbt", "rf", "et", "dt")
TRACER_SPLITS = 3
CQA_QUESTIONS, CQA_TAUGHT = 5000, 3000
PRICE_IN, PRICE_OUT, ANSWER_TOKENS = 3e-6, 15e-6, 40
"""Assumed prices in USD per token of a frontier model in 2026, and the length of a label with three probabilities."""
SHADOW_SHARE = 0.01
NOTE = (
    "Banking77 (Casanueva et al. 2020; PolyAI, CC BY 4.0), labelled by a recorded frontier LLM of 2026. It knows the "
    "labelling habits of this public data set to some degree. CommonsenseQA with PaLM's recorded answers (Apache-2.0). "
    f"cost_ratio assumes {PRICE_IN * 1e6:g} and {PRICE_OUT * 1e6:g} USD per million teacher tokens, a machine for "
    f"{MACHINE_USD_PER_HOUR:g} USD per hour, and {SHADOW_SHARE:.0%} of the student's requests shadowed; tokens of the "
    "teacher's prompt are counted with SmolLM2's tokenizer, the student's seconds are measured one by one. tracer-llm "
    "bounds agreement with the teacher of the handled rows; "
    f"surrogates {', '.join(TRACER_SKIPPED)} are skipped, since gradient boosting takes longer than 7 minutes."
)


@dataclass(frozen=True)
class Population:
    """All requests, answered by student and teacher. `agrees` is where both say the same."""

    rows: RoutingRows
    agrees: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="a folder for the trained student, to run again without training")
    parser.add_argument("--tracer", type=Path, help="a folder with tracer-llm")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument(
        "--quick", action="store_true", help="20 draws, one epoch, few questions, one split of the peer"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    draws = 20 if arguments.quick else arguments.draws
    recording = read_recording(arguments.data / "banking77", quick=False)
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.home or Path(temporary)
        population, embeddings, student_s = answer_banking77(
            arguments.data / "banking77", recording, home, arguments.quick
        )
    figures: dict[str, Any] = {"draws": draws} | describe(population)
    figures |= draw_all(population, draws)
    share = figures["student_share_500"]
    teacher_usd = price_teacher(arguments.data / "banking77")
    student_usd = student_s / 3600 * MACHINE_USD_PER_HOUR
    figures |= {name: figures[f"{name}_500"] for name in ("student_share", "broken_share", "broken_loss_share")}
    figures["teacher_usd_per_1k"] = round(1000 * teacher_usd, 4)
    figures["student_usd_per_1k"] = round(1000 * student_usd, 6)
    figures["cost_ratio"] = round((student_usd + (1 - share + SHADOW_SHARE * share) * teacher_usd) / teacher_usd, 4)
    target = wanted(arguments, "routing")
    write_result(target, figures, note=NOTE)
    splits = 1 if arguments.quick else TRACER_SPLITS
    figures |= measure_tracer(arguments.tracer, recording, population, embeddings, splits)
    write_result(target, figures, note=NOTE)
    weak = answer_commonsenseqa(arguments.data / "commonsenseqa", arguments.quick)
    figures |= {f"csqa_{name}": value for name, value in (describe(weak) | draw_all(weak, draws)).items()}
    print(json.dumps(figures, indent=1))
    write_result(target, figures, note=NOTE)


def answer_banking77(
    data: Path, recording: list[dict[str, Any]], home: Path, quick: bool
) -> tuple[Population, dict[str, np.ndarray], float]:
    """Teach the student and answer the population. Returns the embeddings of seeds and population too, and the
    student's seconds per message, one by one."""
    intents = sorted(name_intent(name) for name in json.loads((data / "categories.json").read_text()))
    labels = [LabelSpec(name=name, description=name) for name in intents]
    seeds = [row for row in recording if row["role"] == "seed"]
    held = [row for row in recording if row["role"] in ("dev", "golden")]
    spec, settings = StudentSpec.model_validate(STUDENTS["minilm"]), TaskSettings("Message")
    adapter = home / ("adapter-quick" if quick else "adapter")
    if not (adapter / TRAINING_LOG_FILE).exists():
        taught = [
            TrainRow(f"s{n}", StudentPrompt.from_text(row["text"]), row["label"], row["probs"])
            for n, row in enumerate(seeds)
        ]
        taught += [
            TrainRow(f"e{n}", StudentPrompt.from_text(" ".join(row["text"].split())), name_intent(row["label"]))
            for n, row in enumerate(read_json_lines(data / "examples-frontier.jsonl"))
        ]
        print(f"training minilm on {len(taught)} messages", file=sys.stderr, flush=True)
        train_adapter(spec, labels, settings, taught, [], adapter, MODELS, epochs=1 if quick else None)
    student = load_predictor(spec, labels, settings, MODELS, adapter)
    asked = [StudentPrompt.from_text(row["text"]) for row in held]
    found = student.predict(asked)
    started = time.perf_counter()
    for prompt in asked[:100]:
        student.predict([prompt])
    seconds = (time.perf_counter() - started) / len(asked[:100])
    answers = [one.label for one in found]
    rows = RoutingRows.from_answers(
        [min(1.0, one.probs[one.label]) for one in found],
        [answer == row["intent"] for answer, row in zip(answers, held, strict=True)],
        [row["label"] == row["intent"] for row in held],
    )
    agrees = np.array([answer == row["label"] for answer, row in zip(answers, held, strict=True)])
    embedder = SentenceEmbedder(MODELS)
    embeddings = {
        name: embedder.embed([row["text"] for row in part]) for name, part in (("seed", seeds), ("held", held))
    }
    return Population(rows, agrees), embeddings, seconds


def answer_commonsenseqa(data: Path, quick: bool) -> Population:
    """Teach a scorer of choices by PaLM's answers and answer the other questions."""
    from scipy.special import softmax
    from sklearn.linear_model import LogisticRegression

    questions = read_json_lines(data / "questions.jsonl")
    told = {row["id"]: row["completion"].split("\n\nQ:")[0] for row in read_json_lines(data / "completions-palm.jsonl")}
    random.Random(0).shuffle(questions)
    questions, taught = (questions[:1500], 500) if quick else (questions[:CQA_QUESTIONS], CQA_TAUGHT)
    letters = [re.search(r"[Ss]o the answer is \(?([a-e])\)", told[one["id"]]) for one in questions]
    teacher = np.array(["abcde".index(letter[1]) if letter else -1 for letter in letters])
    human = np.array([one["choices"].index(one["answer"]) for one in questions])
    embedder = SentenceEmbedder(MODELS)
    print(f"embedding {len(questions)} questions of CommonsenseQA", file=sys.stderr, flush=True)
    asked = embedder.embed([one["question"] for one in questions])
    names = sorted({choice for one in questions for choice in one["choices"]})
    place = {name: n for n, name in enumerate(names)}
    choices = embedder.embed(names)[[[place[choice] for choice in one["choices"]] for one in questions]]
    features = np.concatenate(
        [asked[:, None] * choices, np.abs(asked[:, None] - choices), (asked[:, None] * choices).sum(2, keepdims=True)],
        axis=2,
    )
    part = np.flatnonzero(teacher[:taught] >= 0)
    chosen = (np.arange(features.shape[1]) == teacher[part, None]).ravel()
    model = LogisticRegression(max_iter=300).fit(features[part].reshape(-1, features.shape[2]), chosen)
    rest = slice(taught, None)
    scores = model.decision_function(features[rest].reshape(-1, features.shape[2])).reshape(-1, features.shape[1])
    probs = softmax(scores, axis=1)
    answers = probs.argmax(1)
    rows = RoutingRows(probs.max(1).astype(np.float64), answers == human[rest], teacher[rest] == human[rest])
    return Population(rows, answers == teacher[rest])


def describe(population: Population) -> dict[str, Any]:
    """What is known of student and teacher on the whole population."""
    rows = population.rows
    return {
        "rows": len(rows),
        "teacher": round(float(rows.teacher_right.mean()), 4),
        "student": round(float(rows.student_right.mean()), 4),
        "harm": round(float(rows.harmful.mean()), 4),
        "disagreement": round(float((~population.agrees).mean()), 4),
        **{f"oracle_share_{100 * m:g}pt": round(find_oracle_share(rows, m), 4) for m in MARGINS},
    }


def find_oracle_share(rows: RoutingRows, margin: float) -> float:
    """The largest share whose harm is within the margin on the population itself."""
    points = [measure_router(rows, threshold) for threshold in list_thresholds()]
    return max((point.coverage for point in points if point.harm <= margin), default=0.0)


def draw_all(population: Population, draws: int) -> dict[str, Any]:
    """Calibrate on draws of each size and margin, and look at the whole population."""
    figures: dict[str, Any] = {}
    rows = population.rows
    unlabelled = RoutingRows.from_disagreement(rows.confidence.tolist(), population.agrees.tolist())
    for margin in MARGINS:
        for size in SIZES[margin]:
            rng = np.random.default_rng(size)
            end = f"_{size}" if margin == MARGINS[0] else f"_{100 * margin:g}pt_{size}"
            calibrated = {"": rows} | ({"unlabelled_": unlabelled} if margin == MARGINS[0] else {})
            found: dict[str, list[float]] = {name: [] for name in (*calibrated, "plain_")}
            for _ in range(draws):
                index = rng.integers(0, len(rows), size)
                for name, part in calibrated.items():
                    threshold = calibrate_router(part.take(index), margin).threshold
                    found[name].append(NEVER if threshold is None else threshold)
                found["plain_"].append(find_plain_threshold(rows.take(index), margin))
            for name, thresholds in found.items():
                points = [measure_router(rows, threshold) for threshold in thresholds]
                figures[f"{name}student_share{end}"] = round(statistics.fmean(p.coverage for p in points), 4)
                figures[f"{name}broken_share{end}"] = round(statistics.fmean(p.harm > margin for p in points), 4)
                figures[f"{name}broken_loss_share{end}"] = round(statistics.fmean(p.loss > margin for p in points), 4)
                if not name:
                    figures[f"certified_share{end}"] = round(statistics.fmean(t != NEVER for t in thresholds), 4)
            print(f"margin {margin:g}, {size} rows done", file=sys.stderr, flush=True)
    return figures


def find_plain_threshold(rows: RoutingRows, margin: float) -> float:
    """The lowest threshold whose observed loss is within the margin, without any bound."""
    lowest = NEVER
    for threshold in list_thresholds():
        if measure_router(rows, threshold).loss <= margin:
            lowest = threshold
    return lowest


def price_teacher(data: Path) -> float:
    """USD of one answer of the teacher: all names of intents, three examples of each and the message in its prompt."""
    from transformers import AutoTokenizer

    from distill_dagster.core.models import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct", MODELS).location)
    examples = read_json_lines(data / "examples-frontier.jsonl")
    guide = "\n".join(f"{name_intent(row['label'])}: {row['text']}" for row in examples)
    return len(tokenizer(guide).input_ids) * PRICE_IN + ANSWER_TOKENS * PRICE_OUT


def measure_tracer(
    folder: Path | None,
    recording: list[dict[str, Any]],
    population: Population,
    embeddings: dict[str, np.ndarray],
    splits: int,
) -> dict[str, Any]:
    """The peer: taught by the seeds and 500 messages of the population, judged on the others. Ours on the same."""
    if folder is not None:
        sys.path.append(str(folder))
    try:
        import tracer
    except ImportError as error:
        return {"tracer": f"not measured: {error}"}
    seeds = [row for row in recording if row["role"] == "seed"]
    held = [row for row in recording if row["role"] in ("dev", "golden")]
    found: dict[str, list[float]] = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(held))
        known, judged = order[:500], order[500:]
        traces = [*seeds, *(held[n] for n in known)]
        inputs = np.concatenate([embeddings["seed"], embeddings["held"][known]])
        threshold = calibrate_router(population.rows.take(known), MARGINS[0]).threshold
        ours = measure_router(population.rows.take(judged), NEVER if threshold is None else threshold)
        add(found, "ours", ours.coverage, ours.harm, ours.loss)
        for target in TRACER_TARGETS:
            with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
                file = Path(name) / "traces.jsonl"
                file.write_text("".join(json.dumps({"input": r["text"], "teacher": r["label"]}) + "\n" for r in traces))
                config = tracer.FitConfig(
                    target_teacher_agreement=target,
                    frontier_targets=(target,),
                    skip_candidates=TRACER_SKIPPED,
                    verbose=False,
                )
                result = tracer.fit(file, Path(name) / "fitted", inputs, config)
                kept, labels = np.zeros(len(judged), dtype=bool), [None] * len(judged)
                if result.manifest.selected_method is not None:
                    routed = tracer.load_router(Path(name) / "fitted").predict_batch(embeddings["held"][judged])
                    labels = routed["labels"]
                    kept = np.array([decision == "handled" for decision in routed["decisions"]])
            right = np.array([label == held[n]["intent"] for label, n in zip(labels, judged, strict=True)])
            teacher = population.rows.teacher_right[judged]
            harm, gain = (kept & teacher & ~right).mean(), (kept & ~teacher & right).mean()
            add(found, f"tracer_{100 * target:g}", float(kept.mean()), float(harm), float(harm - gain))
        print(f"tracer-llm, split {split + 1} of {splits} done", file=sys.stderr, flush=True)
    versions = {"tracer_version": metadata.version("tracer-llm"), "mapie_version": metadata.version("mapie")}
    return (
        versions
        | {name: round(statistics.fmean(values), 4) for name, values in found.items()}
        | {
            f"{name.removesuffix('_harm')}_over_margin": round(statistics.fmean(v > MARGINS[0] for v in values), 4)
            for name, values in found.items()
            if name.endswith("_harm")
        }
    )


def add(found: dict[str, list[float]], name: str, share: float, harm: float, loss: float) -> None:
    """Add the figures of one split."""
    for figure, value in (("share", share), ("harm", harm), ("loss", loss)):
        found.setdefault(f"{name}_{figure}", []).append(value)


if __name__ == "__main__":
    main()
