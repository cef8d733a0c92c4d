"""An OpenAI-compatible chat server for benchmarks, with a delay and a given share of failures.

Usage: python benchmarks/slow_server.py PORT_FILE [--delay 0.2] [--faults SHARE] [--odd SHARE] [--seed 0]

It counts requests: GET /counts, and GET /minutes?requests=100 over every sliding minute. A text always gets the same
label, so that tables can be compared. It also has OpenAI's files and batches; a batch has ended when it is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from bisect import bisect_left
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web
from odd_bodies import LINES, READABLE, UNREADABLE, USAGE, build_odd_body, chat

LABELS = ("refund", "delivery", "login", "billing")
FAULTS = (
    *("429", "429 with Retry-After", "500", "503", "507", "521", "hang", "cut", "cut JSON", "empty"),
    *("wrong schema", "refusal"),
)
HANG_S = 3.0


def label_of(text: str) -> str:
    """Return the right answer to a text."""
    return LABELS[int(hashlib.sha256(text.encode()).hexdigest(), 16) % len(LABELS)]


class Server:
    """Answers requests, and counts them by text and result."""

    def __init__(self, delay: float, faults: float, odd: float, seed: int) -> None:
        self.delay, self.faults, self.odd = delay, faults, odd
        self.random = random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.tokens = [0, 0]
        self.in_flight = self.most_in_flight = 0
        self.arrivals: list[float] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][-1]["content"]
        self.asked[text] += 1
        self.arrivals.append(time.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request, text)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, text: str) -> web.StreamResponse:
        fault = self.random.choice(FAULTS) if self.random.random() < self.faults else ""
        odd = self.random.choice([*READABLE, *UNREADABLE]) if self.random.random() < self.odd else ""
        self.outcomes[fault or odd or "ok"] += 1
        await asyncio.sleep(HANG_S if fault == "hang" else self.delay)
        if odd and not fault:
            return self._answer_oddly(odd, text)
        said = {"empty": "", "wrong schema": '{"category": 7}', "refusal": "I'm sorry, but I can't help with that."}
        content = said.get(fault, label_of(text))
        if fault[:3].isdigit():
            headers = {"Retry-After": "1"} if "Retry-After" in fault else {}
            error = {"error": {"message": f"on purpose: {fault}", "type": "test"}}
            return web.json_response(error, status=int(fault[:3]), headers=headers)
        raw = json.dumps(chat(content)).encode()
        if fault == "cut":
            assert request.transport is not None
            request.transport.close()
        if fault == "cut JSON":
            raw = raw[: len(raw) // 2]
        if not fault.startswith("cut") and fault != "hang":
            self.answered[text] += 1
        self._count_tokens()
        return web.Response(body=raw, content_type="application/json")

    def _count_tokens(self) -> None:
        self.tokens[0] += USAGE["prompt_tokens"]
        self.tokens[1] += USAGE["completion_tokens"]

    def _answer_oddly(self, kind: str, text: str) -> web.Response:
        body = build_odd_body(kind, label_of(text))
        if kind in READABLE:
            self.answered[text] += 1
        if '"usage"' in body:
            self._count_tokens()
        return web.Response(body=body.encode(), content_type="application/json")

    async def take_file(self, request: web.Request) -> web.Response:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                id_ = f"file-{len(self.files)}"
                self.files[id_] = bytes(await part.read())
        file = {"id": id_, "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch"}
        return web.json_response(file)

    async def take_batch(self, request: web.Request) -> web.Response:
        body = await request.json()
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].split(b"\n") if line]
        id_ = f"batch_{len(self.batches)}"
        self.files[f"out-{id_}"] = "".join(map(self._answer_line, lines)).encode()
        counts = {"total": len(lines), "completed": len(lines), "failed": 0}
        self.batches[id_] = body | {"id": id_, "object": "batch", "status": "completed", "created_at": 1}
        self.batches[id_] |= {"output_file_id": f"out-{id_}", "request_counts": counts}
        return web.json_response(self.batches[id_])

    def _answer_line(self, line: dict[str, Any]) -> str:
        text = line["body"]["messages"][-1]["content"]
        kind = self.random.choice(list(LINES)) if self.random.random() < self.odd else "whole line"
        self.outcomes[kind] += 1
        self.asked[text] += 1
        self._count_tokens()
        separators = "\u2028\u2029\x85" if kind in LINES else ""
        body = chat(label_of(text), reasoning_content=f"It says so.{separators}Really.")
        response = {"status_code": 200, "request_id": "r", "body": body}
        row = {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}
        written = LINES.get(kind, str)(json.dumps(row, ensure_ascii=False))
        return f"{written}\n" if written else ""

    async def show_batches(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": list(self.batches.values()), "has_more": False})

    async def show_batch(self, request: web.Request) -> web.Response:
        return web.json_response(self.batches[request.match_info["id"]])

    async def show_file(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    async def counts(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "asked": sum(self.asked.values()),
                "texts": len(self.asked),
                "answered": self.answered,
                "outcomes": self.outcomes,
                "tokens": self.tokens,
                "in_flight": self.in_flight,
                "most_in_flight": self.most_in_flight,
            }
        )

    async def minutes(self, request: web.Request) -> web.Response:
        """The most requests of any minute, and how many minutes, one from each request on, have more than allowed."""
        allowed, times = int(request.query["requests"]), sorted(self.arrivals)
        found = [bisect_left(times, start + 60.0) - place for place, start in enumerate(times)]
        exceeded = sum(count > allowed for count in found)
        return web.json_response({"most": max(found, default=0), "exceeded": exceeded, "requests": len(times)})

    async def forget(self, _: web.Request) -> web.Response:
        """Start to count again."""
        self.arrivals, self.most_in_flight = [], 0
        return web.json_response({})


async def serve(port_file: Path, server: Server) -> None:
    app = web.Application(client_max_size=2**28)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/files", server.take_file)
    app.router.add_post("/v1/batches", server.take_batch)
    app.router.add_get("/v1/batches", server.show_batches)
    app.router.add_get("/v1/batches/{id}", server.show_batch)
    app.router.add_get("/v1/files/{id}/content", server.show_file)
    app.router.add_get("/counts", server.counts)
    app.router.add_get("/minutes", server.minutes)
    app.router.add_post("/forget", server.forget)
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
    parser.add_argument("--odd", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    server = Server(arguments.delay, arguments.faults, arguments.odd, arguments.seed)
    asyncio.run(serve(arguments.port_file, server))
