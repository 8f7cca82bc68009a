"""Workers that connect out (``inngest.connect``) run on LocalInngest, over its gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import inngest
import inngest.connect
import pytest
import websockets
from inngest.connect._internal import connect_pb2 as pb

from synap_realtime.integrations.inngest.local.gateway import SUBPROTOCOL
from tests.integrations.inngest.gateway_worker import connected
from tests.support.timeouts import TIMEOUT_S

from .conftest import Stage, on, until

PROTOBUF = {"Content-Type": "application/protobuf"}


async def test_a_worker_runs_steps_retries_and_parallel_groups(stage: Stage) -> None:
    done: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=1)
    async def f(ctx: inngest.Context) -> None:
        async def step(name: str) -> str:
            if ctx.attempt == 0 and name == "shaky":
                raise RuntimeError("not yet")
            return name

        first = await ctx.step.run("shaky", step, "shaky")
        pair = await ctx.group.parallel(
            (lambda: ctx.step.run("b", step, "b"), lambda: ctx.step.run("c", step, "c"))
        )
        done.append((first, *pair, ctx.event.data["x"]))

    async with connected(stage.client, f):
        await stage.send("go", x=1)
        await stage.finish()
    assert done == [("shaky", "b", "c", 1)]


async def test_a_workers_final_error_is_final(stage: Stage) -> None:
    attempts: list[int] = []
    failures: list[Any] = []

    async def failed(ctx: inngest.Context) -> None:
        failures.append(ctx.event.data["error"])

    @stage.client.create_function(fn_id="f", trigger=on("go"), on_failure=failed)
    async def f(ctx: inngest.Context) -> None:
        attempts.append(ctx.attempt)
        raise inngest.NonRetriableError("no use")

    async with connected(stage.client, f):
        await stage.send("go")
        await stage.finish()
    assert attempts == [0]
    assert failures[0]["error"] == "NonRetriableError"


async def test_an_app_with_an_address_invokes_a_worker(stage: Stage) -> None:
    ended: list[Any] = []
    other = inngest.Inngest(app_id="other", is_production=False, api_base_url=stage.inngest_url)

    @other.create_function(fn_id="double", trigger=on("unused"))
    async def double(ctx: inngest.Context) -> int:
        return 2 * int(str(ctx.event.data["n"]))

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        ended.append(
            await ctx.step.invoke_by_id(
                "call", app_id="other", function_id="double", data={"n": 21}
            )
        )

    await stage.serve(f)
    async with connected(other, double):
        await stage.send("go")
        await stage.finish()
    assert ended == [42]


async def test_a_worker_that_goes_while_it_works_is_a_failed_attempt(stage: Stage) -> None:
    failures: list[Any] = []

    @stage.client.create_function(fn_id="h", trigger=on("inngest/function.failed"))
    async def handler(ctx: inngest.Context) -> None:
        failures.append(ctx.event.data["error"])

    await stage.serve(handler)
    async with by_hand(stage) as socket:
        await stage.send("go")
        asked = await receive(socket)
        assert asked.kind == pb.GatewayMessageType.GATEWAY_EXECUTOR_REQUEST
    await stage.finish()
    assert [error["name"] for error in failures] == ["connect_worker_stopped_responding"]


async def test_call_waits_for_a_worker(stage: Stage) -> None:
    """Though the function has one attempt only. A run that is cancelled meanwhile is not called."""
    async with by_hand(stage) as socket:
        await send(socket, pb.GatewayMessageType.WORKER_PAUSE)
        await beat(socket)
        await stage.send("go", n=1)
        await stage.send("go", n=2)
        first, second = stage.server._executor._runs
        await beat(socket)
    await stage.server.cancel(first)
    async with by_hand(stage) as socket:
        asked = pb.GatewayExecutorRequestData.FromString((await receive(socket)).payload)
        assert asked.run_id == second
        await beat(socket)


async def test_a_lease_is_extended(stage: Stage) -> None:
    """Without a new lease, the SDK would stop the work."""
    async with by_hand(stage) as socket:
        lease = pb.WorkerRequestExtendLeaseData(request_id="r", lease_id="old")
        await send(socket, pb.GatewayMessageType.WORKER_REQUEST_EXTEND_LEASE, lease)
        answer = pb.WorkerRequestExtendLeaseAckData.FromString((await receive(socket)).payload)
    assert answer.request_id == "r"
    assert answer.new_lease_id


async def test_worker_may_respond_over_http(stage: Stage) -> None:
    async with by_hand(stage) as socket:
        await stage.send("go")
        asked = pb.GatewayExecutorRequestData.FromString((await receive(socket)).payload)
        answer = pb.SDKResponse(
            request_id=asked.request_id, status=pb.SDKResponseStatus.DONE, body=b"1"
        )
        async with httpx.AsyncClient() as client:
            url = f"{stage.inngest_url}/v0/connect/flush"
            response = await client.post(url, content=answer.SerializeToString(), headers=PROTOBUF)
        assert pb.FlushResponse.FromString(response.content).request_id == asked.request_id
        await until(lambda: not stage.server._executor)


@pytest.mark.parametrize("first", [b"\xff\xff", "text", b"", b"\x08\x01\x12\x05\x2a\x03\x1a\x01x"])
async def test_refuses_a_client_that_is_not_a_worker(stage: Stage, first: bytes | str) -> None:
    async with websockets.connect(await endpoint(stage), subprotocols=[SUBPROTOCOL]) as socket:  # type: ignore[list-item]
        assert (await receive(socket)).kind == pb.GatewayMessageType.GATEWAY_HELLO
        await socket.send(first)
        assert (await receive(socket)).kind == pb.GatewayMessageType.SYNC_FAILED
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4400


@asynccontextmanager
async def by_hand(stage: Stage) -> AsyncIterator[websockets.ClientConnection]:
    """A worker with the function ``hand-f``, whose messages a test writes itself."""
    function = (
        b'[{"id":"hand-f","triggers":[{"event":"go"}],'
        b'"steps":{"step":{"retries":{"attempts":0},"runtime":{"url":"wss://connect"}}}}]'
    )
    connect = pb.WorkerConnectRequestData(
        apps=[pb.AppConfiguration(app_name="hand", functions=function)]
    )
    async with websockets.connect(await endpoint(stage), subprotocols=[SUBPROTOCOL]) as socket:  # type: ignore[list-item]
        assert (await receive(socket)).kind == pb.GatewayMessageType.GATEWAY_HELLO
        await send(socket, pb.GatewayMessageType.WORKER_CONNECT, connect)
        assert (await receive(socket)).kind == pb.GatewayMessageType.GATEWAY_CONNECTION_READY
        yield socket


async def endpoint(stage: Stage) -> str:
    async with httpx.AsyncClient() as client:
        url = f"{stage.inngest_url}/v0/connect/start"
        response = await client.post(url, content=b"", headers=PROTOBUF)
    return str(pb.StartResponse.FromString(response.content).gateway_endpoint)


async def beat(socket: websockets.ClientConnection) -> None:
    """All that was sent before is done, and nothing but this is answered."""
    await send(socket, pb.GatewayMessageType.WORKER_HEARTBEAT)
    assert (await receive(socket)).kind == pb.GatewayMessageType.GATEWAY_HEARTBEAT


async def send(socket: websockets.ClientConnection, kind: Any, payload: Any = None) -> None:
    content = b"" if payload is None else payload.SerializeToString()
    await socket.send(pb.ConnectMessage(kind=kind, payload=content).SerializeToString())


async def receive(socket: websockets.ClientConnection) -> pb.ConnectMessage:
    async with asyncio.timeout(TIMEOUT_S):
        content = await socket.recv()
    assert isinstance(content, bytes)
    message = pb.ConnectMessage()
    message.ParseFromString(content)
    return message
