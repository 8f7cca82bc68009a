"""Accept connections of workers (``inngest.connect``) that have no address of their own.

A worker requests a gateway address, opens a WebSocket and registers its functions. It then receives
the same call requests that an app receives over HTTP. The messages are protobuf, by the SDK's own
definitions. Their order was taken from the real server (its ``pkg/connect/gateway.go``).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from inngest.connect._internal import connect_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from . import sdk
from .bodies import MAX_EVENTS_BYTES, MAX_REPLY_BYTES, PROTOBUF, BodyError, read_body
from .events import new_id
from .registry import Function, RegistrationError

logger = logging.getLogger(__name__)

SUBPROTOCOL = "v0.connect.inngest.com"
_HEARTBEAT = "10s"
_EXTEND_LEASE = "30s"
_REFUSED = 4400
MAX_WORKERS = 100
_HTTP_STATUS = {
    pb.SDKResponseStatus.DONE: 200,
    pb.SDKResponseStatus.NOT_COMPLETED: 206,
    pb.SDKResponseStatus.ERROR: 500,
}

Register = Callable[[object], object]
_Kind = pb.GatewayMessageType


@dataclass(eq=False, slots=True)
class Worker:
    """A connected worker: its functions' ids, each with its app's name."""

    socket: WebSocket
    apps: dict[str, str] = field(default_factory=dict)
    is_paused: bool = False
    calls: dict[str, asyncio.Future[sdk.Outcome]] = field(default_factory=dict)

    async def send(self, kind: pb.GatewayMessageType, payload: Any = None) -> None:
        content = b"" if payload is None else payload.SerializeToString()
        await self.socket.send_bytes(
            pb.ConnectMessage(kind=kind, payload=content).SerializeToString()
        )


class Gateway:
    """All connected workers. A call goes to the least busy one."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self._workers: set[Worker] = set()
        self._connected = asyncio.Condition()
        self.routes: list[BaseRoute] = [
            Route("/v0/connect/start", self._start, methods=["POST"]),
            Route("/v0/connect/flush", self._flush, methods=["POST"]),
            WebSocketRoute("/v0/connect", self._serve),
        ]

    async def ready(self, function: Function) -> None:
        """Wait until a worker with this function is connected."""
        async with self._connected:
            await self._connected.wait_for(lambda: self._able(function))

    async def call(
        self, function: Function, body: dict[str, Any], step_id: str | None
    ) -> sdk.Outcome:
        """Call a function on a worker."""
        if isinstance(content := sdk.encode(body), sdk.SdkFailure):
            return content
        if not (able := self._able(function)):
            return sdk.failure(
                "connect_no_healthy_connection", "Could not find a healthy connection"
            )
        worker = min(able, key=lambda worker: len(worker.calls))
        request = pb.GatewayExecutorRequestData(
            request_id=new_id(),
            app_name=worker.apps[function.id],
            function_slug=function.id,
            step_id=step_id or "step",
            request_payload=content,
            run_id=body["ctx"]["run_id"],
            lease_id=new_id(),
        )
        answered: asyncio.Future[sdk.Outcome] = asyncio.get_running_loop().create_future()
        worker.calls[request.request_id] = answered
        try:
            await worker.send(_Kind.GATEWAY_EXECUTOR_REQUEST, request)
            return await answered
        except (WebSocketDisconnect, RuntimeError):
            return _lost()
        finally:
            worker.calls.pop(request.request_id, None)

    async def _start(self, request: Request) -> Response:
        await read_body(request, PROTOBUF, MAX_EVENTS_BYTES)
        scheme = "wss" if request.url.scheme == "https" else "ws"
        answer = pb.StartResponse(
            connection_id=new_id(),
            gateway_endpoint=str(request.url.replace(scheme=scheme, path="/v0/connect")),
            gateway_group="local",
        )
        return _protobuf(answer)

    async def _flush(self, request: Request) -> Response:
        """Accept a response that a worker could not send over its connection."""
        content = await read_body(request, PROTOBUF, MAX_REPLY_BYTES)
        try:
            response = pb.SDKResponse.FromString(content)
        except DecodeError as error:
            raise BodyError(400, f"not an SDKResponse: {error}") from error
        self._answer(response)
        return _protobuf(pb.FlushResponse(request_id=response.request_id))

    async def _serve(self, socket: WebSocket) -> None:
        await socket.accept(subprotocol=SUBPROTOCOL)
        worker = Worker(socket)
        try:
            if len(self._workers) >= MAX_WORKERS:
                raise RegistrationError(f"{MAX_WORKERS} workers are connected already")
            await self._greet(worker)
            while True:
                await self._handle(worker, await _receive(socket))
        except RegistrationError as error:
            logger.warning("worker rejected: %s", error)
            await worker.send(_Kind.SYNC_FAILED)
            await socket.close(_REFUSED, str(error)[:100])
        except WebSocketDisconnect:
            logger.info("worker disconnected")
        finally:
            self._workers.discard(worker)
            for answered in worker.calls.values():
                if not answered.done():
                    answered.set_result(_lost())

    async def _greet(self, worker: Worker) -> None:
        """Perform the handshake and register the worker's functions, as for an HTTP app."""
        await worker.send(_Kind.GATEWAY_HELLO)
        message = await _receive(worker.socket)
        if message.kind != _Kind.WORKER_CONNECT:
            raise RegistrationError("a worker's first message must be WORKER_CONNECT")
        for app in pb.WorkerConnectRequestData.FromString(message.payload).apps:
            try:
                functions = json.loads(app.functions)
                self._register({"appname": app.app_name, "functions": functions})
                worker.apps |= {function["id"]: app.app_name for function in functions}
            except ValueError as error:
                raise RegistrationError(f"a worker's functions are invalid: {error}") from error
        ready = pb.GatewayConnectionReadyData(
            heartbeat_interval=_HEARTBEAT, extend_lease_interval=_EXTEND_LEASE
        )
        await worker.send(_Kind.GATEWAY_CONNECTION_READY, ready)
        self._workers.add(worker)
        async with self._connected:
            self._connected.notify_all()
        logger.info("worker connected with %d functions", len(worker.apps))

    async def _handle(self, worker: Worker, message: pb.ConnectMessage) -> None:
        match message.kind:
            case _Kind.WORKER_REPLY:
                response = pb.SDKResponse.FromString(message.payload)
                self._answer(response)
                ack = pb.WorkerReplyAckData(request_id=response.request_id)
                await worker.send(_Kind.WORKER_REPLY_ACK, ack)
            case _Kind.WORKER_HEARTBEAT:
                await worker.send(_Kind.GATEWAY_HEARTBEAT)
            case _Kind.WORKER_PAUSE:
                worker.is_paused = True
            case _Kind.WORKER_REQUEST_EXTEND_LEASE:
                lease = pb.WorkerRequestExtendLeaseData.FromString(message.payload)
                extended = pb.WorkerRequestExtendLeaseAckData(
                    request_id=lease.request_id, new_lease_id=new_id()
                )
                await worker.send(_Kind.WORKER_REQUEST_EXTEND_LEASE_ACK, extended)

    def _able(self, function: Function) -> list[Worker]:
        return [w for w in self._workers if function.id in w.apps and not w.is_paused]

    def _answer(self, response: pb.SDKResponse) -> None:
        for worker in self._workers:
            answered = worker.calls.get(response.request_id)
            if answered is not None and not answered.done():
                answered.set_result(_read(response))


def _read(response: pb.SDKResponse) -> sdk.Outcome:
    try:
        answer = json.loads(response.body)
    except ValueError:
        return sdk.failure("ResponseError", "the worker's response is not in the SDK's format")
    return sdk.read(
        _HTTP_STATUS.get(response.status, 500),
        answer,
        no_retry=response.no_retry,
        retry_after=response.retry_after or None,
    )


def _lost() -> sdk.SdkFailure:
    return sdk.failure("connect_worker_stopped_responding", "The worker stopped responding")


async def _receive(socket: WebSocket) -> pb.ConnectMessage:
    """Return the next message."""
    message = pb.ConnectMessage()
    try:
        message.ParseFromString(await socket.receive_bytes())
    except (DecodeError, KeyError) as error:
        raise RegistrationError(f"not a message of {SUBPROTOCOL}: {error}") from error
    return message


def _protobuf(message: Any) -> Response:
    return Response(message.SerializeToString(), media_type="application/protobuf")
