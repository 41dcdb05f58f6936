"""The application: routes, the event stream, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from . import chat
from .answers import Answer, Answers
from .catalog import Catalog
from .chat import ChatBody
from .checkout import Checkout
from .checkpoints import Checkpoint
from .evaluations import Evaluations, Refused
from .pool import Busy, Limits, Pool
from .runs import Run, Store
from .serving import line

STATIC = Path(__file__).with_name("static")
RETRY_AFTER = 3


class StopBody(BaseModel):
    id: str


class EvaluationBody(BaseModel):
    model: str
    task: str
    limit: int | None = None


class Events(Response):
    """Server-sent events. When the reader goes, the source is closed at once, wherever it waits."""

    def __init__(self, source: AsyncGenerator[dict[str, Any], None]) -> None:
        # Proxies that hold back answers (nginx) are asked not to.
        super().__init__(media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(self._gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            results = await asyncio.gather(sending, gone, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self.source) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in events:
                data = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@dataclass
class State:
    """What the routes share."""

    checkout: Checkout
    catalog: Catalog
    pool: Pool
    evaluations: Evaluations
    answers: Answers

    def checkpoint(self, key: str | None) -> Checkpoint:
        """By its key; the one to talk to first where none is named."""
        found = self.catalog.checkpoints()
        if not found:
            raise HTTPException(404, f"no checkpoint was found below {self.checkout.base}: train a model first")
        if key is None:
            usable = [checkpoint for checkpoint in found if checkpoint.problem is None]
            if not usable:
                raise HTTPException(404, f"no checkpoint can be loaded; the first: {found[0].problem}")
            return usable[0]
        chosen = next((checkpoint for checkpoint in found if checkpoint.key == key), None)
        if chosen is None:
            raise HTTPException(404, f"there is no model {key!r} (any more): choose another one")
        if chosen.problem is not None:
            raise HTTPException(409, f"{chosen.name} cannot be loaded: {chosen.problem}")
        return chosen

    def run(self, name: str) -> Run:
        run = self.evaluations.runs.get(name)
        if run is None:
            raise HTTPException(404, f"there is no evaluation {name!r} (any more)")
        return run

    def answer(self, name: str) -> Answer:
        answer = self.answers.by_name.get(name)
        if answer is None:
            raise HTTPException(404, "the server does not have this answer (any more)")
        return answer


def run_json(run: Run) -> dict[str, Any]:
    fields = ("id", "model", "name", "task", "limit", "state", "created", "started", "ended", "command", "note")
    return {**{name: getattr(run, name) for name in fields}, "progress": run.progress.to_json()}


def build(catalog: Catalog, limits: Limits, store: Store, *, device: str | None = None) -> FastAPI:
    """The application, and `app.state.pool` for those who end it. The store must be held."""
    checkout = catalog.checkout
    state = State(
        checkout=checkout,
        catalog=catalog,
        pool=Pool(checkout, limits, device=device),
        evaluations=Evaluations(checkout, store, device=device),
        answers=Answers(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        beside = [asyncio.ensure_future(work) for work in (state.pool.sweep(), state.evaluations.work())]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await state.pool.close()
            await state.answers.close()

    # Its own documentation pages load scripts from a CDN.
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.pool, app.state.broken = state.pool, store.broken
    _pages(app)
    _chat(app, state)
    _evaluations(app, state)
    return app


def _pages(app: FastAPI) -> None:
    fresh = {"cache-control": "no-cache"}
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/")
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=fresh)

    @app.get("/favicon.ico")
    async def icon() -> Response:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml", headers=fresh)


def _chat(app: FastAPI, state: State) -> None:
    pool = state.pool

    @app.post("/chat/completions")
    async def completions(body: ChatBody, request: Request) -> Response:
        wrong = chat.judge(body)
        if wrong is not None:
            raise HTTPException(400, wrong)
        checkpoint = await asyncio.to_thread(state.checkpoint, body.model)
        if await request.is_disconnected():  # stopped, or closed, before it began
            return Response(status_code=204)
        if body.id in state.answers.by_name:
            raise HTTPException(409, f"there is an answer {body.id!r} already")
        try:
            ticket = pool.queue_up(checkpoint)
        except Busy as busy:
            return JSONResponse(
                {"detail": str(busy), "ahead": busy.ahead}, 503, headers={"retry-after": str(RETRY_AFTER)}
            )
        answer = Answer(pool, ticket, chat.order(body), name=body.id, keep=body.keep)
        state.answers.start(answer)
        return Events(answer.read())

    @app.get("/chat/answers/{name}")
    async def answer(name: str) -> Response:
        return Events(state.answer(name).read())

    @app.post("/stop")
    async def stop(body: StopBody) -> dict[str, bool]:
        answer = state.answers.by_name.get(body.id)
        if answer is None or answer.over is not None:
            return {"stopped": False}
        answer.stop()
        return {"stopped": True}

    @app.get("/models")
    async def models() -> dict[str, Any]:
        found = await asyncio.to_thread(state.catalog.checkpoints)
        loaded = {worker.checkpoint.version: worker for worker in pool.workers.values()}
        listed = []
        for checkpoint in found:
            worker = loaded.get(checkpoint.version)
            ready = worker.ready if worker is not None else None
            listed.append(
                {
                    **checkpoint.to_json(),
                    "state": None if worker is None else "ready" if ready else "loading",
                    "parameters": ready["parameters"] if ready else None,
                    "serving": line(ready["attention"], ready["device"], ready["decoding"]).to_json()
                    if ready
                    else None,
                }
            )
        usable = [checkpoint.key for checkpoint in found if checkpoint.problem is None]
        return {
            "models": listed,
            "default": usable[0] if usable else None,
            "looked_at": [str(folder) for folder in state.checkout.looked_at()],
            "nanochat": str(state.checkout.root),
            "defaults": chat.DEFAULTS,
            "limits": {"message": chat.MAX_MESSAGE, "conversation": chat.MAX_CONVERSATION},
        }

    @app.get("/health")
    async def health() -> dict[str, Any]:
        told = pool.describe()
        return {"status": "ok", "ready": any(model["state"] == "ready" for model in told["models"])}

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        return {**pool.describe(), "streams": state.answers.under_way()}


def _evaluations(app: FastAPI, state: State) -> None:
    evaluations = state.evaluations

    @app.get("/evaluations")
    async def listing() -> dict[str, Any]:
        runs = [run_json(run) for run in reversed(list(evaluations.runs.values()))]
        return {"runs": runs, "folder": str(evaluations.store.folder), "broken": evaluations.store.broken}

    @app.get("/evaluations/tasks")
    async def offers(model: str) -> dict[str, Any]:
        checkpoint = await asyncio.to_thread(state.checkpoint, model)
        return {"tasks": evaluations.offers(checkpoint)}

    @app.post("/evaluations", status_code=201)
    async def add(body: EvaluationBody) -> dict[str, Any]:
        if body.limit is not None and body.limit < 1:
            raise HTTPException(400, f"limit must be 1 or more, found {body.limit}")
        checkpoint = await asyncio.to_thread(state.checkpoint, body.model)
        try:
            return run_json(evaluations.add(checkpoint, body.task, body.limit))
        except Refused as refused:
            raise HTTPException(409, str(refused)) from refused

    @app.post("/evaluations/{name}/cancel")
    async def cancel(name: str) -> dict[str, Any]:
        evaluations.cancel(state.run(name))
        return run_json(state.run(name))

    @app.post("/evaluations/{name}/delete")
    async def delete(name: str) -> dict[str, bool]:
        try:
            evaluations.delete(state.run(name))
        except Refused as refused:
            raise HTTPException(409, str(refused)) from refused
        return {"deleted": True}

    @app.get("/evaluations/{name}/log")
    async def log(name: str) -> Response:
        run = state.run(name)
        return PlainTextResponse(await asyncio.to_thread(evaluations.store.shown_log, run))
