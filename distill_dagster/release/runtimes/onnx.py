"""Answer from an ONNX file with onnxruntime and tokenizers alone, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import ModelError
from distill_dagster.release.packages import require_packages
from distill_dagster.release.runtimes.types import StudentAnswer, StudentSetup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distill_dagster.student.types import StudentPrompt

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "config.json"
"""The files next to an ONNX file. The first has the rules of truncation and padding, the second the labels."""
INPUT_NAMES, OUTPUT_NAME = ("input_ids", "attention_mask"), "logits"


class OnnxRuntime:
    """An encoder with its head in one ONNX file. Texts of similar length share a batch."""

    batch_size = 8
    concurrency = 1

    def __init__(self, path: Path, setup: StudentSetup, name: str = "onnx", threads: int | None = None) -> None:
        """`path` is the ONNX file. `threads` compute one batch, by default as many as there are cores."""
        self.name = name
        self._path, self._setup, self._threads = path, setup, threads
        self._session: Any = None
        self._tokenizer: Any = None

    def open(self) -> None:
        """Load the file, its tokenizer and its labels, and answer once: the first run takes longer.

        Raises:
            DistillError: the extra `release` is not installed.
            ModelError: a file cannot be loaded, or its labels are not those of the student.
        """
        require_packages("Answering from an ONNX file", "onnxruntime", "tokenizers")
        import onnxruntime
        from tokenizers import Tokenizer

        from distill_dagster.student.types import StudentPrompt

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that wait without sleeping take the processor from requests that wait for it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            self._check_labels(self._path.with_name(CONFIG_FILE))
            self._tokenizer = Tokenizer.from_file(str(self._path.with_name(TOKENIZER_FILE)))
            self._session = onnxruntime.InferenceSession(str(self._path), options, ["CPUExecutionProvider"])
            self.answer([StudentPrompt.from_text("warm up")])
        except ModelError:
            raise
        except Exception as error:  # onnxruntime and tokenizers have no base class of their errors
            raise ModelError(f"{self._path} could not be loaded: {error}. Release the student again.") from error

    def close(self) -> None:
        self._session = self._tokenizer = None

    def is_alive(self) -> bool:
        return self._session is not None

    def encode(self, prompts: Sequence[StudentPrompt]) -> list[list[int]]:
        """The tokens of every prompt that the model reads, after truncation and without padding."""
        encoded = self._get_tokenizer().encode_batch([prompt.text for prompt in prompts])
        return [[token for token, read in zip(e.ids, e.attention_mask, strict=True) if read] for e in encoded]

    def answer(self, prompts: Sequence[StudentPrompt]) -> list[StudentAnswer]:
        """As `Runtime`."""
        answers: dict[int, StudentAnswer] = {}
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].text))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            answers |= zip(part, self._answer_batch([prompts[i].text for i in part]), strict=True)
        return [answers[i] for i in range(len(prompts))]

    def stream(self, prompt: StudentPrompt) -> Iterator[str | StudentAnswer]:
        """As `Runtime`: the label, then the answer."""
        [answer] = self.answer([prompt])
        yield answer.raw_text
        yield answer

    def _answer_batch(self, texts: list[str]) -> list[StudentAnswer]:
        import numpy as np

        encoded = self._get_tokenizer().encode_batch(texts)
        ids = np.array([e.ids for e in encoded], dtype=np.int64)
        mask = np.array([e.attention_mask for e in encoded], dtype=np.int64)
        [logits] = self._session.run([OUTPUT_NAME], dict(zip(INPUT_NAMES, (ids, mask), strict=True)))
        return [
            self._build_answer(probs, int(count)) for probs, count in zip(_softmax(logits), mask.sum(1), strict=True)
        ]

    def _build_answer(self, values: NDArray[np.float64], prompt_tokens: int) -> StudentAnswer:
        probs = dict(zip(self._setup.label_names, values.tolist(), strict=True))
        best = max(probs, key=probs.__getitem__)
        return StudentAnswer(best, best, probs[best], probs, prompt_tokens, 0)

    def _get_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise ModelError(f"{self.name} is not open.")
        return self._tokenizer

    def _check_labels(self, config: Path) -> None:
        named: dict[str, str] = json.loads(config.read_text(encoding="utf-8"))["id2label"]
        found = [named[key] for key in sorted(named, key=int)]
        if found != self._setup.label_names:
            raise ModelError(
                f"{config} has other labels than the student, or the same in another order: {', '.join(found)}. "
                f"Release the student again."
            )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
