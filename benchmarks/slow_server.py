"""An OpenAI-compatible chat server for benchmarks, with a delay and a given share of failures.

Usage: python benchmarks/slow_server.py PORT_FILE [--delay 0.2] [--faults SHARE] [--seed 0]

It counts requests: GET /counts. A text always gets the same label, so that tables can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

from aiohttp import web

LABELS = ("refund", "delivery", "login", "billing")
FAULTS = ("429", "429 with Retry-After", "500", "503", "hang", "cut", "cut JSON", "empty", "wrong schema", "refusal")
HANG_S = 3.0


def label_of(text: str) -> str:
    """Return the right answer to a text."""
    return LABELS[int(hashlib.sha256(text.encode()).hexdigest(), 16) % len(LABELS)]


class Server:
    """Answers requests, and counts them by text and result."""

    def __init__(self, delay: float, faults: float, seed: int) -> None:
        self.delay, self.faults = delay, faults
        self.random = random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.tokens = [0, 0]
        self.in_flight = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][-1]["content"]
        self.asked[text] += 1
        self.in_flight += 1
        try:
            return await self._answer(request, text)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, text: str) -> web.StreamResponse:
        fault = self.random.choice(FAULTS) if self.random.random() < self.faults else ""
        self.outcomes[fault or "ok"] += 1
        await asyncio.sleep(HANG_S if fault == "hang" else self.delay)
        said = {"empty": "", "wrong schema": '{"category": 7}', "refusal": "I'm sorry, but I can't help with that."}
        content = said.get(fault, label_of(text))
        if fault.startswith("429") or fault in ("500", "503"):
            headers = {"Retry-After": "1"} if "Retry-After" in fault else {}
            error = {"error": {"message": f"on purpose: {fault}", "type": "test"}}
            return web.json_response(error, status=int(fault[:3]), headers=headers)
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "slow", "choices": [choice]}
        raw = json.dumps(answer | {"usage": usage}).encode()
        if fault == "cut":
            assert request.transport is not None
            request.transport.close()
        if fault == "cut JSON":
            raw = raw[: len(raw) // 2]
        if not fault.startswith("cut") and fault != "hang":
            self.answered[text] += 1
        self.tokens[0] += 40
        self.tokens[1] += 3
        return web.Response(body=raw, content_type="application/json")

    async def counts(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "asked": sum(self.asked.values()),
                "texts": len(self.asked),
                "answered": self.answered,
                "outcomes": self.outcomes,
                "tokens": self.tokens,
                "in_flight": self.in_flight,
            }
        )


async def serve(port_file: Path, server: Server) -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/counts", server.counts)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    temporary = port_file.with_suffix(".writing")
    temporary.write_text(str(runner.addresses[0][1]))
    temporary.replace(port_file)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port_file", type=Path)
    parser.add_argument("--delay", type=float, default=0.2)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port_file, Server(arguments.delay, arguments.faults, arguments.seed)))
