"""A free teacher: an OpenAI-compatible HTTP server on a loopback port that derives its answers from the text.

It speaks /v1/completions and /v1/chat/completions, gives log-probabilities in the shape of each, keeps every request
it saw, and fails on purpose where a test says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

KEYWORD_SHARE = 0.7
"""The probability of a label whose name is in the text. A hash of the prompt divides the rest among the others."""


@dataclass(frozen=True)
class ReceivedRequest:
    """One received request; `text` is the message to classify."""

    path: str
    body: dict[str, Any]
    authorization: str
    text: str


@dataclass(frozen=True)
class Fault:
    """What to send instead of an answer: a status with a body, a pause before it, or bytes that are not JSON."""

    status: int = 200
    body: str = '{"error": {"message": "on purpose", "type": "test"}}'
    pause_s: float = 0.0
    echo_authorization: bool = False
    retry_after: str | None = None


FaultPlan = Callable[[ReceivedRequest, int], Fault | None]
"""Called with a request and the number of earlier requests with the same text. None sends the normal answer."""


@dataclass
class FakeProvider:
    """`with FakeProvider(labels) as provider:` serves at `provider.url` until the block ends."""

    labels: list[str]
    fail: FaultPlan | None = None
    logprobs: bool = True
    usage: bool = True
    answer: Callable[[ReceivedRequest], str] | None = None
    finish: str | None = None
    message: dict[str, Any] = field(default_factory=dict)
    """Additional fields of the message of a chat answer, such as reasoning_content, refusal or tool_calls."""
    change_body: Callable[[dict[str, Any], ReceivedRequest], Any] | None = None
    """Turns the body of a good answer into what is sent, online and in batches."""
    pause_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every response."""
    requests: list[ReceivedRequest] = field(default_factory=list)
    _times: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def texts(self) -> list[str]:
        return [seen.text for seen in self.requests]

    def note(self, seen: ReceivedRequest) -> int:
        """Keep a request, and return how often the same request was seen before."""
        with self._lock:
            key = json.dumps([seen.text, seen.body], sort_keys=True)
            self._times[key] += 1
            self.requests.append(seen)
            return self._times[key] - 1

    def probabilities(self, text: str, prompt: str) -> dict[str, float]:
        """The distribution over the labels that the server answers with. Every label has a share; the sum is 1."""
        named = next((label for label in self.labels if label in text), None)
        noise = {
            label: 1 + int(hashlib.sha256(f"{prompt}\n{label}".encode()).hexdigest()[:4], 16) / 65535
            for label in self.labels
        }
        total = sum(value for label, value in noise.items() if label != named)
        rest = 1 - KEYWORD_SHARE if named else 1.0
        return {k: KEYWORD_SHARE if k == named else rest * v / total for k, v in noise.items()}

    def tokens(self, text: str, prompt: str, spelled: str, limit: int) -> list[tuple[str, list[tuple[str, float]]]]:
        """The tokens of the answer, each with the likeliest tokens at its place. A token is one word with its space."""
        shares = self.probabilities(text, prompt)
        written, out = spelled.split(), []
        for _ in range(limit):
            possible = {k: v for k, v in shares.items() if k.split()[: len(written)] == written}
            total, following = sum(possible.values()), dict[str, float]()
            for label, share in possible.items():
                words = label.split()
                token = f" {words[len(written)]}" if len(words) > len(written) else "\n"
                following[token] = following.get(token, 0.0) + share / total
            ranked = sorted(following.items(), key=lambda item: (-item[1], item[0]))
            taken = ranked[0][0]
            out.append((taken, [(token, math.log(share)) for token, share in ranked]))
            if taken == "\n":
                break
            written.append(taken.strip())
        return out


def _handler(provider: FakeProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat = self.path.endswith("/chat/completions")
            if chat:
                text, spelled, prompt = body["messages"][-1]["content"], "", json.dumps(body["messages"])
            else:
                text, _, spelled = body["prompt"].splitlines()[-1].partition(" =>")
                prompt = body["prompt"].removesuffix(spelled)
            authorization = self.headers.get("Authorization", "")
            seen = ReceivedRequest(self.path, body, authorization, text)
            before = provider.note(seen)
            fault = provider.fail(seen, before) if provider.fail else None
            time.sleep(fault.pause_s if fault else provider.pause_s)
            if fault is not None and (fault.status != 200 or fault.body != Fault.body):
                content = fault.body
                if fault.echo_authorization:
                    content = json.dumps({"error": {"message": f"refused: {authorization}", "type": "test"}})
                self._send(fault.status, content, fault.retry_after)
            else:
                self._send(200, json.dumps(build_answer(provider, seen, chat, prompt, spelled)))

        def _send(self, status: int, content: str, retry_after: str | None = None) -> None:
            raw = content.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                if retry_after:
                    self.send_header("Retry-After", retry_after)
                for name, value in provider.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


def build_answer(provider: FakeProvider, seen: ReceivedRequest, chat: bool, prompt: str, spelled: str) -> Any:
    body = seen.body
    # Without labels every answer comes from `answer`, and has no tokens to show.
    tokens = provider.tokens(seen.text, prompt, spelled, body["max_tokens"]) if provider.labels else [("\n", [])]
    text = provider.answer(seen) if provider.answer else "".join(token for token, _ in tokens)
    finish = provider.finish or ("stop" if tokens[-1][0] == "\n" or provider.answer else "length")
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    if chat:
        choice["message"] = {"role": "assistant", "content": text} | provider.message
        if body.get("logprobs") and provider.logprobs:
            tops = body["top_logprobs"]
            choice["logprobs"] = {
                "content": [
                    {
                        "token": token,
                        "logprob": dict(top)[token],
                        "bytes": None,
                        "top_logprobs": [{"token": t, "logprob": lp, "bytes": None} for t, lp in top[:tops]],
                    }
                    for token, top in tokens
                ]
            }
    else:
        choice["text"] = text
        if body.get("logprobs") and provider.logprobs:
            choice["logprobs"] = {
                "tokens": [token for token, _ in tokens],
                "token_logprobs": [dict(top)[token] for token, top in tokens],
                "top_logprobs": [dict(top[: body["logprobs"]]) for _, top in tokens],
                "text_offset": [0] * len(tokens),
            }
    counts = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(tokens), "total_tokens": 0}
    answer = {
        "id": "fake",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": "fake-1",
        "choices": [choice],
        **({"usage": counts} if provider.usage else {}),
    }
    return provider.change_body(answer, seen) if provider.change_body else answer
