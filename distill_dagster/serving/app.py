"""The HTTP server of one released student: routes, limits, errors and request ids."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from distill_dagster.config import ServingSpec
from distill_dagster.serving import protocol, streaming
from distill_dagster.serving.access import check_access
from distill_dagster.serving.answering import Answerer, ServedAnswer
from distill_dagster.serving.errors import (
    CutRequestError,
    InternalError,
    RequestError,
    RequestTimeoutError,
    SlowBodyError,
    TooLargeError,
    UnknownModelError,
)
from distill_dagster.serving.metrics import ServerMetrics
from distill_dagster.serving.model import ServedModel
from distill_dagster.serving.request_log import RequestLog
from distill_dagster.serving.responses import build_headers, format_error, format_json, say_not_found
from distill_dagster.student.types import StudentPrompt

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

BODY_S = 20.0
"""Seconds in which the body of a request has to arrive."""
OPEN_PATHS = ("/health",)
"""Paths that need no API key: whoever watches the server has none."""
T = TypeVar("T")
logger = logging.getLogger("distill.serving")


class StudentServer:
    """Answers requests for one model. `build_app` makes the ASGI application."""

    def __init__(
        self,
        model: ServedModel,
        answerer: Answerer,
        spec: ServingSpec,
        metrics: ServerMetrics,
        log: RequestLog,
        api_key: str | None = None,
    ) -> None:
        self.model, self.answerer, self.spec, self.metrics, self.log = model, answerer, spec, metrics, log
        self._api_key = api_key.encode() if api_key else None
        self._started = time.monotonic()

    def build_app(self) -> Starlette:
        """The application. Its lifespan starts the workers and, at the end, waits for what is under way."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self.answerer.batcher.start()
            try:
                yield
            finally:
                await self.answerer.stop()
                await asyncio.to_thread(self.log.close)

        posts = {
            "/v1/chat/completions": self._complete_chat,
            "/v1/completions": self._complete_texts,
            "/v1/classify": self._classify,
            "/v1/feedback": self._take_feedback,
        }
        gets = {
            "/v1/models": self._list_models,
            "/health": self._report_health,
            "/metrics": self._report_metrics,
        }
        routes = [Route(path, self._wrap(path, handle), methods=["POST"]) for path, handle in posts.items()]
        routes += [Route(path, self._wrap(path, handle), methods=["GET"]) for path, handle in gets.items()]
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: say_not_found, 405: say_not_found})

    def _wrap(
        self, path: str, handle: Callable[[Request, str], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler with request id, API key, metrics and errors in OpenAI's form."""

        from starlette.requests import ClientDisconnect

        async def handle_request(request: Request) -> Response:
            id_ = protocol.read_request_id(request.headers.get("x-request-id"), uuid.uuid4().hex)
            started = time.perf_counter()
            self.metrics.in_flight.inc()
            try:
                if path not in OPEN_PATHS:
                    check_access(request, self._api_key)
                async with asyncio.timeout(self.spec.timeout_s):
                    response = await handle(request, id_)
            except TimeoutError:
                response = format_error(
                    RequestTimeoutError(f"There is no answer within {self.spec.timeout_s:g} s. Try again later.")
                )
            except RequestError as error:
                response = format_error(error)
            except ClientDisconnect:
                response = format_error(CutRequestError("The connection was cut before the body was complete."))
            except Exception:
                logger.exception("request %s failed", id_)
                response = format_error(InternalError(f"The server failed. Its log has request {id_}."))
            finally:
                self.metrics.in_flight.dec()
            self.metrics.requests.labels(path, str(response.status_code)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
            response.headers["x-request-id"] = id_
            return response

        return handle_request

    async def _read_body(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request.

        Raises:
            RequestError: it is too large, too slow or malformed.
        """
        limit = self.spec.max_body_kb * 1024
        too_large = TooLargeError(f"The body is larger than {self.spec.max_body_kb} KiB. Send less at once.")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise SlowBodyError(f"The body did not arrive within {BODY_S:g} s. Send it faster.") from None
        value = protocol.parse_body(bytes(body))
        self._check_model(value)
        return value

    def _check_model(self, value: dict[str, Any]) -> None:
        name = value.get("model")
        if name is not None and name not in self.model.names:
            raise UnknownModelError(f"There is no model {name!r}. Use {self.model.task!r}.", "model")

    async def _while_connected(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, which stops when its client hangs up: nobody pays a teacher for nobody.

        Raises:
            CutRequestError: the client has hung up.
        """

        async def wait_for_end() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        task, end = asyncio.create_task(work), asyncio.create_task(wait_for_end())
        try:
            await asyncio.wait((task, end), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise CutRequestError("The connection was cut before there was an answer.")
            return task.result()
        finally:
            task.cancel()
            end.cancel()
            await asyncio.gather(task, end, return_exceptions=True)

    async def _answer(self, prompt: StudentPrompt, id_: str, slice_: Any = None) -> ServedAnswer:
        return await self.answerer.answer(prompt, self._build_logger(prompt, id_, slice_), self.spec.timeout_s)

    async def _answer_all(self, prompts: list[StudentPrompt], id_: str) -> list[ServedAnswer]:
        ids = protocol.build_item_ids(id_, len(prompts))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._answer(p, one)) for p, one in zip(prompts, ids, strict=True)]
        except* RequestError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _build_logger(self, prompt: StudentPrompt, id_: str, slice_: Any) -> Callable[[ServedAnswer], None]:
        at, threshold = datetime.now(UTC), self.answerer.routing.threshold
        return lambda found: self.log.add(self.model.build_log_row(id_, at, prompt, slice_, threshold, found))

    async def _complete_chat(self, request: Request, id_: str) -> Response:
        value = await self._read_body(request)
        asked = protocol.read_chat_request(value, self.spec.keep_system, self.model.tools)
        metadata = value.get("metadata")
        slice_ = metadata.get("slice") if isinstance(metadata, dict) else None
        model = value.get("model") or self.model.task
        if asked.stream:
            return await self._stream_chat(request, asked, id_, model, slice_)
        found = await self._while_connected(request, self._answer(asked.prompt, id_, slice_))
        calls_tools = self.model.kind.answer_kind == "tool_calls"
        return format_json(protocol.format_chat(id_, model, found, self.model.details, calls_tools), [found])

    async def _stream_chat(
        self, request: Request, asked: protocol.ChatRequest, id_: str, model: str, slice_: Any
    ) -> Response:
        """Stream an answer. If the teacher may replace the student's, it is sent in one piece once it is known."""
        from starlette.responses import StreamingResponse

        chunks = streaming.ChunkFormatter(id_, model)
        if self.answerer.can_stream:
            self.answerer.batcher.refuse_if_busy()  # while there can still be a status
            pieces = self._stream_pieces(asked, chunks, self._build_logger(asked.prompt, id_, slice_))
            return StreamingResponse(pieces, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        found = await self._while_connected(request, self._answer(asked.prompt, id_, slice_))

        async def send() -> AsyncIterator[bytes]:
            reasoning = {"reasoning_content": found.reasoning} if found.reasoning else {}
            yield chunks.format_delta({"role": "assistant", "content": found.text} | reasoning)
            for last in self._end_stream(asked, chunks, found):
                yield last

        headers = {"cache-control": "no-cache"} | build_headers([found])
        return StreamingResponse(send(), media_type="text/event-stream", headers=headers)

    async def _stream_pieces(
        self, asked: protocol.ChatRequest, chunks: streaming.ChunkFormatter, log: Callable[[ServedAnswer], None]
    ) -> AsyncIterator[bytes]:
        yield chunks.format_delta({"role": "assistant", "content": ""})
        reader = streaming.PieceReader()
        try:
            async with asyncio.timeout(self.spec.timeout_s), aclosing(self.answerer.stream(asked.prompt, log)) as parts:  # type: ignore[type-var]
                async for part in parts:
                    if isinstance(part, str):
                        for delta in reader.read(part):
                            yield chunks.format_delta(delta)
                        continue
                    for delta in reader.read("", is_last=True):
                        yield chunks.format_delta(delta)
                    for last in self._end_stream(asked, chunks, part):
                        yield last
        except (RequestError, TimeoutError) as error:
            yield chunks.format_error(str(error) or f"There is no answer within {self.spec.timeout_s:g} s.")

    def _end_stream(
        self, asked: protocol.ChatRequest, chunks: streaming.ChunkFormatter, found: ServedAnswer
    ) -> list[bytes]:
        details = protocol.format_details(found, self.model.details)
        ending = [chunks.format_delta({}, found.finish_reason, distill=details)]
        return [*ending, *([chunks.format_usage(found)] if asked.include_usage else []), streaming.DONE]

    async def _complete_texts(self, request: Request, id_: str) -> Response:
        value = await self._read_body(request)
        prompts = protocol.read_texts_request(value, "prompt").prompts
        answers = await self._while_connected(request, self._answer_all(prompts, id_))
        model = value.get("model") or self.model.task
        return format_json(protocol.format_completions(id_, model, answers, self.model.details), answers)

    async def _classify(self, request: Request, id_: str) -> Response:
        if not self.model.kind.has_labels:
            raise RequestError(f"{self.model.task} has no labels. Use /v1/chat/completions.", code="no_labels")
        value = await self._read_body(request)
        prompts = protocol.read_texts_request(value, "input").prompts
        answers = await self._while_connected(request, self._answer_all(prompts, id_))
        model = value.get("model") or self.model.task
        return format_json(protocol.format_labels(id_, model, answers, self.model.details), answers)

    async def _take_feedback(self, request: Request, id_: str) -> Response:
        """Keep what a user says about an answer. It waits for a person, who reads it with `distill review`."""
        feedback = protocol.read_feedback_request(await self._read_body(request), self.model.kind)
        known = list(filter(self.log.is_known, protocol.list_possible_ids(feedback.request_id)))
        if not known:
            message = f"There is no answer {feedback.request_id!r}, or it is too long ago. Send the id of a recent one."
            raise RequestError(message, "id", "unknown_id")
        feedback = replace(feedback, request_id=known[0])
        if not self.log.count_feedback(feedback.request_id):
            raise RequestError("There is enough feedback to this answer.", "id", "enough_feedback")
        try:
            await asyncio.to_thread(self.log.write_feedback, feedback)
        except OSError as error:
            logger.error("feedback could not be written: %s", error)
            raise InternalError("The feedback could not be written. Try again later.") from None
        self.metrics.feedback.labels("right" if feedback.is_right else "wrong").inc()
        return format_json({"id": feedback.request_id, "object": "feedback", "status": "waits for review"})

    async def _list_models(self, request: Request, id_: str) -> Response:
        common = {"object": "model", "created": self.model.released_at, "owned_by": "distill-dagster"}
        return format_json(
            {"object": "list", "data": [{"id": name} | common | self.model.details for name in self.model.names]}
        )

    async def _report_health(self, request: Request, id_: str) -> Response:
        is_alive = self.answerer.batcher.runtime.is_alive()
        if not is_alive:
            self.answerer.batcher.start_again()
        state = {
            "status": "ok" if is_alive else "the student's process has ended; it is starting again",
            "task": self.model.task,
            **self.model.details,
            "threshold": self.answerer.routing.threshold,
            "waiting": self.answerer.batcher.waiting,
            "seconds": round(time.monotonic() - self._started, 1),
        }
        return format_json(state, status=200 if is_alive else 503)

    async def _report_metrics(self, request: Request, id_: str) -> Response:
        from starlette.responses import Response

        self.metrics.waiting.set(self.answerer.batcher.waiting)
        return Response(self.metrics.format(), media_type="text/plain; version=0.0.4; charset=utf-8")
