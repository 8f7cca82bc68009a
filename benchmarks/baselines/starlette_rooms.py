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


async def broadcast(request: Request) -> JSONResponse:
    for notification in (await request.json())["notifications"]:
        targets = notification.pop("rooms")
        text = json.dumps(notification, separators=(",", ":"))
        for room in targets:
            for socket in list(rooms.get(room, ())):
                await socket.send_text(text)
    return JSONResponse({"success": True})


app = Starlette(
    routes=[
        WebSocketRoute("/rooms/{room}/subscribe", subscribe),
        Route("/broadcast", broadcast, methods=["POST"]),
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
