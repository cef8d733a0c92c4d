"""Answer with the adapter on its base, in torch: what serves a release that has no other export."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.core.errors import ModelError
from distill_dagster.release.runtimes.types import StudentAnswer, StudentSetup

if TYPE_CHECKING:
    from distill_dagster.student.free_text import FreeTextStudent, WrittenAnswer
    from distill_dagster.student.predict import StudentPredictor
    from distill_dagster.student.types import Prediction, StudentPrompt


class AdapterRuntime:
    """A student as the report measured it: `student.predict.load_predictor` with the released adapter."""

    batch_size = 8
    concurrency = 1

    def __init__(self, adapter: Path, setup: StudentSetup, name: str = "adapter") -> None:
        self.name = name
        self._adapter, self._setup = adapter, setup
        self._predictor: StudentPredictor | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Load the base, merge the adapter into it, and answer once: the first forward pass takes longer."""
        from distill_dagster.student.predict import StudentPredictor
        from distill_dagster.student.types import StudentPrompt

        setup = self._setup
        predictor = setup.load_predictor(self._adapter)
        assert isinstance(predictor, StudentPredictor)
        self._predictor = predictor
        if setup.chooses_label:
            predictor.predict([StudentPrompt.from_text("warm up")])

    def close(self) -> None:
        self._predictor = None

    def is_alive(self) -> bool:
        return self._predictor is not None

    def answer(self, prompts: Sequence[StudentPrompt]) -> list[StudentAnswer]:
        """As `Runtime`. One call computes at a time."""
        from distill_dagster.student.free_text import FreeTextStudent

        asked = list(prompts)
        with self._lock:
            predictor = self._get_predictor()
            student = predictor.student
            if not isinstance(student, FreeTextStudent):
                predictions = predictor.predict(asked, self.batch_size)
                counts = student.count_prompt_tokens(asked)
                return [self._build_label_answer(p, count) for p, count in zip(predictions, counts, strict=True)]
            answers = []
            for start in range(0, len(asked), self.batch_size):
                part = asked[start : start + self.batch_size]
                written = student.write_answers(part)
                answers += [
                    _build_written_answer(w, n) for w, n in zip(written, student.count_prompt_tokens(part), strict=True)
                ]
            return answers

    def stream(self, prompt: StudentPrompt) -> Iterator[str | StudentAnswer]:
        """As `Runtime`. The text is written in a thread of its own."""
        from distill_dagster.student.free_text import FreeTextStudent

        student = self._get_predictor().student
        if isinstance(student, FreeTextStudent):
            yield from self._stream_written(student, prompt)
            return
        [answer] = self.answer([prompt])
        yield answer.raw_text
        yield answer

    def _stream_written(self, student: FreeTextStudent, prompt: StudentPrompt) -> Iterator[str | StudentAnswer]:
        parts: queue.Queue[str | WrittenAnswer | BaseException] = queue.Queue()
        closed = threading.Event()

        def listen(text: str) -> bool:
            parts.put(text)
            return not closed.is_set()

        def write() -> None:
            try:
                with self._lock:
                    parts.put(student.write_answers([prompt], listen)[0])
            except BaseException as error:
                parts.put(error)

        thread = threading.Thread(target=write, name="stream", daemon=True)
        thread.start()
        sent = ""
        try:
            while True:
                part = parts.get()
                if isinstance(part, BaseException):
                    raise ModelError(f"{self.name} could not answer: {part}") from part
                text = part if isinstance(part, str) else part.text
                # The last bytes of a character may be in the next token.
                text = text.rstrip("\N{REPLACEMENT CHARACTER}") if isinstance(part, str) else text
                if text.startswith(sent) and len(text) > len(sent):
                    yield text[len(sent) :]
                    sent = text
                if not isinstance(part, str):
                    yield _build_written_answer(part, student.count_prompt_tokens([prompt])[0])
                    return
        finally:
            closed.set()
            thread.join()

    def _get_predictor(self) -> StudentPredictor:
        if self._predictor is None:
            raise ModelError(f"{self.name} is not open.")
        return self._predictor

    def _build_label_answer(self, prediction: Prediction, prompt_tokens: int) -> StudentAnswer:
        from distill_dagster.student.causal import CausalStudent

        student = self._get_predictor().student
        tokens = 0  # an encoder writes none
        if isinstance(student, CausalStudent):
            tokens = len(student.trie.paths[student.labels.index(prediction.label)])
        confidence = min(1.0, max(prediction.probs.values()))
        return StudentAnswer(prediction.label, prediction.raw_text, confidence, prediction.probs, prompt_tokens, tokens)


def _build_written_answer(written: WrittenAnswer, prompt_tokens: int) -> StudentAnswer:
    reason = "length" if written.is_cut else "stop"
    return StudentAnswer(written.text, written.text, None, None, prompt_tokens, written.tokens, reason)
