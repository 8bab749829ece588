"""What operators may ask of the process itself: read the settings again, hand over to a new process."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from fastapi import FastAPI, Response
from pydantic import BaseModel


class ReloadAnswer(msgspec.Struct, frozen=True):
    """What became of a reload. Refused: nothing has changed."""

    accepted: bool
    text: str
    changed: tuple[str, ...] = ()
    """Keys that hold from now on."""
    restart: tuple[str, ...] = ()
    """Keys that differ in the file, and hold after the next restart only."""
    added: tuple[str, ...] = ()
    """Workers that join."""
    removed: tuple[str, ...] = ()
    """Workers that leave once what runs there has ended."""
    problems: tuple[str, ...] = ()


class RestartAnswer(msgspec.Struct, frozen=True):
    """What became of a hand-over. Refused: this process goes on as before."""

    accepted: bool
    text: str
    pid: int = 0
    """Of the process that serves now."""


@dataclass(slots=True, frozen=True)
class Lifecycle:
    """Who carries it out."""

    reload: Callable[[bool], Awaitable[ReloadAnswer]]
    """The argument: also if more than half of the workers would go."""
    restart: Callable[[], Awaitable[RestartAnswer]]


class ReloadWish(BaseModel):
    force: bool = False


class RestartWish(BaseModel):
    pass


def add_lifecycle(app: FastAPI, lifecycle: Lifecycle) -> None:
    """POST /api/v1/reload and /api/v1/restart; 409 with the reason if refused."""

    def answer(said: ReloadAnswer | RestartAnswer) -> Response:
        status = 200 if said.accepted else 409
        return Response(msgspec.json.encode(said), status_code=status, media_type="application/json")

    @app.post("/api/v1/reload")
    async def reload(wish: ReloadWish) -> Response:
        return answer(await lifecycle.reload(wish.force))

    @app.post("/api/v1/restart")
    async def restart(_wish: RestartWish) -> Response:
        return answer(await lifecycle.restart())
