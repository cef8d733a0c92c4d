"""HTTP clients for benchmarks of the server: fast ones that measure, and ones that behave badly."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answers:
    """What came back: seconds per request, and the answers that were no answers."""

    seconds: list[float] = field(default_factory=list)
    labels: list[tuple[str, str, str]] = field(default_factory=list)
    """Text, label and route of each answer."""
    lost: list[str] = field(default_factory=list)
    """What came in place of an answer."""


class Connection:
    """One HTTP/1.1 connection that is kept open. It costs the machine far less than a client library."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request and read the whole response."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port)
        reader, writer = self._streams
        writer.write(
            b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        length = int(next(line for line in lines if line.startswith("content-length:")).split(":")[1])
        return int(lines[0].split()[1]), await reader.readexactly(length)

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None


def build_body(text: str) -> bytes:
    """The body of a chat completion."""
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


async def ask_all(address: str, texts: list[str], concurrency: int) -> Answers:
    """Ask for every text, with so many connections at the same time."""
    found, queue = Answers(), iter(texts)

    async def work() -> None:
        connection = Connection(address)
        for text in queue:
            await ask_one(connection, text, found)
        await connection.close()

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return found


async def ask_one(connection: Connection, text: str, found: Answers) -> None:
    """Ask for one text and note what came."""
    started = time.perf_counter()
    try:
        status, body = await asyncio.wait_for(connection.post("/v1/chat/completions", build_body(text)), 120)
        value: dict[str, Any] = json.loads(body)
        if status != 200:
            found.lost.append(f"{status}: {value['error']['message']}")
            return
        found.seconds.append(time.perf_counter() - started)
        found.labels.append((text, value["choices"][0]["message"]["content"], value["distill"]["route"]))
    except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
        found.lost.append(f"{type(error).__name__}: {error}")
        await connection.close()


FAULTS = ("slow", "cut body", "cut answer", "10 MB", "bad JSON", "no model", "idle")


async def misbehave(address: str, fault: str, rng: random.Random) -> str | None:
    """Do something bad. Returns what was wrong with the server's reaction, or None."""
    connection = Connection(address)
    try:
        reader, writer = await asyncio.open_connection(connection.host, connection.port)
        body = build_body("my app is slow")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
        match fault:
            case "slow":
                writer.write(head % len(body))
                for byte in body:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(rng.uniform(0, 0.02))
                return await _expect(reader, 200)
            case "cut body":
                writer.write(head % (len(body) + 100) + body)
                await writer.drain()
            case "cut answer":
                writer.write(head % len(body) + body)
                await writer.drain()
            case "10 MB":
                writer.write(head % 10_000_000)
                with suppress(OSError):
                    for _ in range(100):
                        writer.write(b"a" * 100_000)
                        await writer.drain()
                return await _expect(reader, 413)
            case "bad JSON":
                writer.write(head % 7 + b'{"a": [')
                return await _expect(reader, 400)
            case "no model":
                text = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "a"}]}).encode()
                writer.write(head % len(text) + text)
                return await _expect(reader, 404)
            case "idle":
                await asyncio.sleep(1)
        writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return f"{fault}: {type(error).__name__} {error}"
    return None


async def _expect(reader: asyncio.StreamReader, status: int) -> str | None:
    line = await asyncio.wait_for(reader.readline(), 60)
    return None if f" {status} ".encode() in line else f"expected {status}, got {line!r}"
