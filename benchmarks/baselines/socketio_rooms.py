"""python-socketio, its ASGI server with rooms, on uvicorn: python-socketio.readthedocs.io."""

from __future__ import annotations

import sys

import socketio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")


@sio.event  # type: ignore[untyped-decorator]  # it has no types
async def subscribe(sid: str, room: str) -> bool:
    await sio.enter_room(sid, room)
    return True


async def broadcast(request: Request) -> JSONResponse:
    for notification in (await request.json())["notifications"]:
        await sio.emit("notification", notification, room=notification.pop("rooms"))
    return JSONResponse({"success": True})


api = Starlette(routes=[Route("/broadcast", broadcast, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(
        socketio.ASGIApp(sio, other_asgi_app=api),
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        ws_per_message_deflate=False,
        backlog=4096,
    )
