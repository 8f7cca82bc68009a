"""Starlette's WebSockets on uvicorn (uvloop, httptools, websockets): starlette.dev/websockets."""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

rooms: defaultdict[str, set[WebSocket]] = defaultdict(set)


async def subscribe(socket: WebSocket) -> None:
    room = socket.path_params["room"]
    await socket.accept()
    rooms[room].add(socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        rooms[room].discard(socket)


async def send(room: str, text: str) -> int:
    members = list(rooms.get(room, ()))
    for socket in members:
        await socket.send_text(text)
    return len(members)


async def broadcast(request: Request) -> JSONResponse:
    text = (await request.body()).decode()
    count = await send(request.path_params["room"], text)
    return JSONResponse({"success": True, "broadcastCount": count})


async def broadcast_many(request: Request) -> JSONResponse:
    for notification in (await request.json())["notifications"]:
        targets = notification.pop("rooms")
        text = json.dumps(notification, separators=(",", ":"))
        for room in targets:
            await send(room, text)
    return JSONResponse({"success": True})


app = Starlette(
    routes=[
        WebSocketRoute("/rooms/{room}/subscribe", subscribe),
        Route("/rooms/{room}/broadcast", broadcast, methods=["POST"]),
        Route("/broadcast", broadcast_many, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        ws_per_message_deflate=False,
        backlog=4096,
    )
