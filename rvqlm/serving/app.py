"""The server's paths: OpenAI's audio API, a continuation, a stream, and what tells how it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from rvqlm.errors import UserError
from rvqlm.serving.answers import (
    Account,
    AudioAnswer,
    ClientLeft,
    collect,
    first_audio,
    unless_left,
)
from rvqlm.serving.errors import ApiError
from rvqlm.serving.formats import WHOLE, Encoder, media_type, require
from rvqlm.serving.guard import LEFT, Guard
from rvqlm.serving.orders import Piece
from rvqlm.serving.page import page
from rvqlm.serving.schemas import Continuation, Form, Speech, of_form, of_json
from rvqlm.serving.served import Served, new_seed
from rvqlm.serving.service import Service
from rvqlm.serving.talk import Talk
from rvqlm.serving.voices import DEFAULT


class Paths:
    """What answers requests."""

    def __init__(self, service: Service):
        self.service, self.limits, self.results = service, service.limits, service.results

    async def speech(self, request: Request) -> Response:
        asked = of_json(await request.body(), Speech)
        served = self.service.find(asked.model)
        served.check_speech(asked)
        served.check_text(asked.input)
        if asked.instructions:
            raise ApiError(400, "instructions: this model follows none", "instructions")
        seed = new_seed() if asked.seed is None else asked.seed
        work = partial(self.service.prepare, served.speech, asked, asked.input, seed)
        return await self._carry_out(request, "speech", served, asked, seed, work)

    async def continuation(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            asked, upload = of_json(await request.body(), Continuation), None
            return await self._continue(request, asked, upload)
        if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
            raise ApiError(400, f"content-type {kind[:60]!r}: send a form or JSON")
        async with request.form(max_files=1, max_fields=32, max_part_size=1 << 16) as form:
            fields = dict(form.items())
            upload = fields.pop("file", None)
            if strange := [k for k, v in fields.items() if isinstance(v, UploadFile)]:
                raise ApiError(400, f"{strange[0]}: send the recording as `file`", strange[0])
            if isinstance(upload, str):
                raise ApiError(400, "file: send the recording as a file", "file")
            return await self._continue(request, of_form(fields, Continuation), upload)

    async def _continue(
        self, request: Request, asked: Continuation, upload: UploadFile | None
    ) -> Response:
        served = self.service.find(asked.model)
        served.voice(asked.voice_name)
        if upload is not None and asked.voice_name:
            raise ApiError(400, "give a file or a voice, one of them", "voice")
        served.check_text(asked.input)
        served.check_text(asked.prompt_text, "prompt_text")
        seed = new_seed() if asked.seed is None else asked.seed

        async def work() -> Piece:
            audio = None if upload is None else await self.service.decode(upload, served)
            return await self.service.prepare(served.continuation, asked, audio, seed)

        return await self._carry_out(request, "continuation", served, asked, seed, work)

    async def _carry_out(
        self,
        request: Request,
        endpoint: str,
        served: Served,
        asked: Form,
        seed: int,
        work: Callable[[], Awaitable[Piece]],
    ) -> Response:
        """From an accepted request to its audio."""
        name, events = asked.response_format, asked.stream_format == "sse"
        require(name)
        stream = asked.stream if asked.stream is not None else asked.stream_format is not None
        whole = not stream and (asked.stream is False or name in WHOLE)
        info = served.model.info
        order = served.worker.open(served.seconds(asked))
        try:
            order.say(await unless_left(request, work()))
            order.close()
            about = {**served.about, "seed": seed, "voice": asked.voice_name or DEFAULT}
            account = Account(order, endpoint, about, self.results)
            encoder = Encoder(name, info.sampling_rate, info.channels, whole)
            if not whole:
                first = await unless_left(request, first_audio(order, account))
                return AudioAnswer(order, first, account, encoder, name, self.limits, events)
            data = await unless_left(request, collect(order, account, encoder))
            account.close()
            order.leave()
            headers = {"x-request-id": order.id, "cache-control": "no-store"}
            return Response(data, media_type=media_type(name), headers=headers)
        except BaseException as e:
            if isinstance(e, ClientLeft):
                served.worker.lost("left")
            order.leave()
            raise

    async def result(self, request: Request) -> Response:
        return JSONResponse(self.results.get(request.path_params["id"]))

    async def list_models(self, request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [m.card() for m in self.service.models.values()]}
        )

    async def model(self, request: Request) -> Response:
        return JSONResponse(self.service.find(request.path_params["name"]).card())

    async def voices(self, request: Request) -> Response:
        """Of one model, `?model=NAME`, or of all."""
        name = request.query_params.get("model", "")
        chosen = [self.service.find(name)] if name else self.service.models.values()
        data = [
            {"id": voice, "object": "voice", "model": served.name}
            for served in chosen
            for voice in served.voice_names()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def health(self, request: Request) -> Response:
        failed = {
            name: m.worker.failure for name, m in self.service.models.items() if m.worker.failure
        }
        if self.service.stopping or failed:
            return JSONResponse({"status": "stopping" if self.service.stopping else "failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def count(self, request: Request) -> Response:
        return PlainTextResponse(
            self.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def stream(self, socket: WebSocket) -> None:
        await Talk(self.service, socket).run()


def make_app(service: Service) -> Guard:
    paths = Paths(service)
    routes = [
        Route("/", page),
        Route("/healthz", paths.health),
        Route("/metrics", paths.count),
        Route("/v1/models", paths.list_models),
        Route("/v1/models/{name:path}", paths.model),
        Route("/v1/voices", paths.voices),
        Route("/v1/audio/speech", paths.speech, methods=["POST"]),
        Route("/v1/audio/continuation", paths.continuation, methods=["POST"]),
        Route("/v1/audio/results/{id}", paths.result),
        WebSocketRoute("/v1/audio/stream", paths.stream),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _answer,
            UserError: _answer,
            HTTPException: _of_starlette,
            ClientLeft: _nobody,
            Exception: _answer,
        },
    )
    return Guard(app, service.door, service.limits, service.metrics)


async def _answer(request: Request, error: Exception) -> Response:
    return ApiError.of(error).response()


async def _of_starlette(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    return ApiError(error.status_code, str(error.detail), headers=headers).response()


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)
