"""Answer from a GGUF file with llama.cpp's server, in a process of its own.

Prompts are rendered and cut as in training, and sent as tokens. A label is chosen as `student.label_trie` says: at
every branch the server returns the probabilities of the branch's tokens alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import ModelError
from distill_dagster.core.llama_cpp import LlamaProcess
from distill_dagster.release.runtimes.llama_requests import (
    WrittenTokens,
    build_writing_body,
    read_top,
    sort_replies,
)
from distill_dagster.release.runtimes.types import StudentAnswer, StudentSetup
from distill_dagster.student.label_trie import LabelTrie
from distill_dagster.student.prompts import (
    ANSWER_CUE,
    LABEL_CUE,
    REASONING_CUE,
    EncodedPrompt,
    PromptRenderer,
    make_renderer,
)
from distill_dagster.student.types import StudentPrompt

if TYPE_CHECKING:
    import httpx

TOKENIZER_FOLDER = "tokenizer"
"""The folder next to a GGUF file with the student's tokenizer."""
CHOICE_BIAS = 100.0
"""Added to the logits of a branch's tokens. All other tokens are left with a probability of about e^-80."""
MIN_REACH = 1e-6
"""A branch that is reached with less probability is not asked for. The labels below it share it equally."""
_TIMEOUT_S = 600


class LlamaServerRuntime:
    """A GGUF file behind llama.cpp's HTTP server on a free loopback port. One slot answers one prompt at a time."""

    batch_size = 8

    def __init__(
        self, gguf: Path, setup: StudentSetup, name: str, concurrency: int = 2, threads: int | None = None
    ) -> None:
        self.name, self.concurrency = name, concurrency
        self._gguf, self._setup = gguf, setup
        spec = setup.spec
        objective = spec.resolve_objective(bool(setup.labels), setup.settings.reasoning)
        writes_reasoning = not setup.chooses_label and _writes_reasoning(objective, setup)
        self.cue = LABEL_CUE if setup.chooses_label else REASONING_CUE if writes_reasoning else ANSWER_CUE
        # Templates may add some tokens when the server renders the prompt itself.
        room = spec.max_tokens + spec.answer_tokens + 64
        self._process = LlamaProcess(gguf, concurrency, room, name, threads)
        self._client: httpx.Client | None = None
        self._trie: LabelTrie | None = None

    def open(self) -> None:
        """As `Runtime`.

        Raises:
            ModelError: xllamacpp is not installed, or the file or its tokenizer cannot be loaded.
        """
        import httpx

        self.load_renderer()
        if self._setup.chooses_label:
            paths = [self.renderer.encode_answer(label) for label in self._setup.label_names]
            self._trie = LabelTrie(paths, self.renderer.end)
        self._process.start()
        key = {"Authorization": f"Bearer {self._process.key}"}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(
            base_url=self._process.address, headers=key, timeout=_TIMEOUT_S, limits=limits, trust_env=False
        )

    def load_renderer(self) -> PromptRenderer:
        """The renderer of the student's prompts, with the tokenizer next to the file. `open` calls this.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        self.renderer = _load_renderer(self._gguf.parent / TOKENIZER_FOLDER, self._setup)
        return self.renderer

    def close(self) -> None:
        """As `Runtime`."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._process.stop()

    def is_alive(self) -> bool:
        """As `Runtime`."""
        return self._client is not None and self._process.is_alive()

    def answer(self, prompts: Sequence[StudentPrompt]) -> list[StudentAnswer]:
        """As `Runtime`."""
        encoded = self.encode(prompts)
        if self._trie is None:
            written = self.write([one.ids for one in encoded], self._setup.spec.answer_tokens, cache=True)
            return [self._build_written(one, tokens) for one, tokens in zip(encoded, written, strict=True)]
        probs = self.compute_label_probs([one.ids for one in encoded])
        return [self._build_label(one, row) for one, row in zip(encoded, probs, strict=True)]

    def stream(self, prompt: StudentPrompt) -> Iterator[str | StudentAnswer]:
        """As `Runtime`. Closing the iterator closes the connection, which ends the generation."""
        if self._trie is not None:
            [answer] = self.answer([prompt])
            yield answer.raw_text
            yield answer
            return
        [encoded] = self.encode([prompt])
        tokens: list[int] = []
        top: list[dict[int, float]] = []
        is_cut, sent = False, ""
        body = build_writing_body(encoded.ids, self._setup.spec.answer_tokens, 1, True) | {"stream": True}
        for event in self._stream_events(body):
            tokens += event.get("tokens") or []
            top += read_top(event)
            is_cut = event.get("stop_type") == "limit"
            # The last bytes of a character may be in the next token.
            text = self.renderer.decode_answer(tokens, self.cue).rstrip("\N{REPLACEMENT CHARACTER}") if tokens else ""
            if text.startswith(sent) and len(text) > len(sent):
                yield text[len(sent) :]
                sent = text
        answer = self._build_written(encoded, WrittenTokens(tokens, top, is_cut))
        if len(answer.raw_text) > len(sent):
            yield answer.raw_text[len(sent) :]
        yield answer

    def encode(self, prompts: Sequence[StudentPrompt]) -> list[EncodedPrompt]:
        """The tokens of every prompt, cut to `max_tokens` as in training."""
        return self.renderer.encode_prompts(list(prompts), self.cue)

    def compute_label_probs(self, prompts: Sequence[list[int]]) -> list[list[float]]:
        """The probability of every label after every prompt, in the task's order."""
        trie = self._trie
        assert trie is not None
        probs = [[1.0] * len(trie.paths) for _ in prompts]
        for branch in trie.branches:
            members = [label for group in branch.labels for label in group]
            reached = [i for i in range(len(prompts)) if probs[i][members[0]] >= MIN_REACH]
            choices = self._rate_tokens([[*prompts[i], *branch.prefix] for i in reached], branch.children)
            found = dict(zip(reached, choices, strict=True))
            equal = [len(group) / len(members) for group in branch.labels]
            for i, row in enumerate(probs):
                for share, group in zip(found.get(i, equal), branch.labels, strict=True):
                    for label in group:
                        row[label] *= share
        return probs

    def write(self, prompts: Sequence[list[int]], most: int, top: int = 1, cache: bool = False) -> list[WrittenTokens]:
        """Continue every prompt with at most `most` tokens, the most probable each time.

        Args:
            top: for how many tokens at each place log-probabilities are returned.
            cache: whether the start of a prompt may be read from the slot's cache. It rounds a little differently.
        """
        if not prompts:
            return []
        replies = self._post("/completion", build_writing_body(list(prompts), most, top, cache))
        return [
            WrittenTokens(reply["tokens"], read_top(reply), reply["stop_type"] == "limit")
            for reply in sort_replies(replies)
        ]

    def tokenize(self, text: str) -> list[int]:
        """The server's own tokens of a text, with the special tokens that it adds."""
        body = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def chat(self, messages: list[dict[str, str]], most: int) -> dict[str, Any]:
        """The reply of the chat endpoint, which renders the prompt with the file's own template. Always greedy."""
        body = {"messages": messages, "max_tokens": most, "temperature": 0, "cache_prompt": False}
        body |= {"reasoning_format": "none"}
        reply: dict[str, Any] = self._post("/v1/chat/completions", body)
        return reply

    def count_answer_tokens(self, most: int) -> int:
        """The most tokens of an answer with its end token, at most `most` if the student writes."""
        if self._trie is not None:
            return max(map(len, self._trie.paths))
        return min(most, self._setup.spec.answer_tokens)

    def strip_mark(self, text: str) -> str:
        """An answer's text without the mark that a plain prompt ends with."""
        return text.strip().removeprefix(self.cue.strip()).strip()

    def _rate_tokens(self, prompts: list[list[int]], tokens: tuple[int, ...]) -> list[list[float]]:
        """The probability of each of these tokens after every prompt, as if there were no others."""
        if not prompts:
            return []
        body = {
            "prompt": prompts,
            "n_predict": 1,
            "logit_bias": [[token, CHOICE_BIAS] for token in tokens],
            "samplers": ["temperature"],
            "temperature": 1.0,
            "n_probs": len(tokens),
            "post_sampling_probs": True,
            "seed": 1,
            "cache_prompt": True,
        }
        rows = []
        for reply in sort_replies(self._post("/completion", body)):
            found = {entry["id"]: entry["prob"] for entry in reply["completion_probabilities"][0]["top_probs"]}
            weights = [float(found.get(token, 0.0)) for token in tokens]
            total = sum(weights)
            if total <= 0:
                raise ModelError(f"{self.name} gave no probability to any label. Release the student again.")
            rows.append([weight / total for weight in weights])
        return rows

    def _build_label(self, encoded: EncodedPrompt, row: list[float]) -> StudentAnswer:
        assert self._trie is not None
        probs = dict(zip(self._setup.label_names, row, strict=True))
        best = max(probs, key=probs.__getitem__)
        count = len(self._trie.paths[self._setup.label_names.index(best)])
        return StudentAnswer(best, best, min(1.0, probs[best]), probs, len(encoded.ids), count)

    def _build_written(self, encoded: EncodedPrompt, written: WrittenTokens) -> StudentAnswer:
        text = self.renderer.decode_answer(written.tokens, self.cue)
        chosen = [top[token] for token, top in zip(written.tokens, written.top, strict=False) if token in top]
        confidence = math.exp(sum(chosen) / len(chosen)) if chosen else None
        is_cut = written.is_cut and not set(written.tokens) & set(self.renderer.stops)
        reason = "length" if is_cut else "stop"
        return StudentAnswer(text, text, confidence, None, len(encoded.ids), len(written.tokens), reason)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        import httpx

        if self._client is None:
            raise ModelError(f"{self.name} is not open.")
        try:
            response = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise self._explain(error) from error
        if response.status_code != 200:
            raise ModelError(f"llama.cpp's server refused a request: {response.text[:300]}")
        return response.json()

    def _stream_events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        import httpx

        if self._client is None:
            raise ModelError(f"{self.name} is not open.")
        try:
            with self._client.stream("POST", "/completion", json=body) as response:
                if response.status_code != 200:
                    raise ModelError(f"llama.cpp's server refused a request: {response.read().decode()[:300]}")
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> ModelError:
        if not self._process.is_alive():
            return ModelError(f"llama.cpp's server of {self._gguf.name} has ended. Start it again.")
        return ModelError(f"llama.cpp's server of {self._gguf.name} did not answer: {error or type(error).__name__}")


def _writes_reasoning(objective: Any, setup: StudentSetup) -> bool:
    from distill_dagster.config.objective import writes_reasoning

    return writes_reasoning(objective, bool(setup.labels), setup.settings.reasoning)


def _load_renderer(folder: Path, setup: StudentSetup) -> PromptRenderer:
    import transformers

    from distill_dagster.core import models

    with models.convert_load_errors(str(folder)), models.silence_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    file = folder / "generation_config.json"
    generation = SimpleNamespace(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
    return make_renderer(setup.spec, setup.settings, tokenizer, generation)
