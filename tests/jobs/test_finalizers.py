"""A finalizer that interrupts a job reports nothing for it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from synap_realtime import bind_reporter, delta, progress
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun, JobType
from synap_realtime.testing import RealtimeRecorder

REPORT = JobType("report.creation")


def say(label: str) -> None:
    progress(0.5, label)
    delta(f"{label};")


class Node:
    """May be part of a cycle."""

    other: object = None


class Finalized(Node):
    def __del__(self) -> None:
        say("of a")


class Closed(Node):
    def close(self) -> None:
        say("of a")

    __del__ = close


class Raising(Node):
    def __del__(self) -> None:
        try:
            raise ValueError("in between")
        except ValueError:
            say("of a")


class Callback:
    def __call__(self, reference: object) -> None:
        say("of a")

    def method(self, reference: object) -> None:
        say("of a")


def generator() -> Generator[None, None, None]:
    try:
        yield
    finally:
        say("of a")


def raising_generator() -> Generator[None, None, None]:
    try:
        yield
    finally:
        try:
            raise ValueError("in between")
        except ValueError:
            say("of a")


async def async_generator() -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await asyncio.sleep(0)
        say("of a")


async def waiting() -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        say("of a")


class Garbage:
    """What the first job leaves behind, until the second job drops it."""

    def __init__(self) -> None:
        self.held: list[object] = []
        self.references: list[object] = []

    def finalized(self, kind: type[Node]) -> None:
        self.held.append(kind())

    def watched(self, watch: Callable[[Node], object]) -> None:
        node = Node()
        self.held.append(node)
        self.references.append(watch(node))

    def suspended(self, make: Callable[[], Generator[None, None, None]]) -> None:
        begun = make()
        next(begun)
        self.held.append(begun)

    def coroutine(self) -> None:
        begun: Coroutine[Any, Any, None] = waiting()
        begun.send(None)
        self.held.append(begun)

    async def suspended_async(self) -> None:
        begun = async_generator()
        await anext(begun)
        self.held.append(begun)

    def drop(self, *, as_cycle: bool) -> None:
        if as_cycle:
            cycle = Node()
            cycle.other = (cycle, self.held)
            del cycle
        self.held = []
        gc.collect()


KINDS: dict[str, Callable[[Garbage], object]] = {
    "__del__": lambda garbage: garbage.finalized(Finalized),
    "alias of __del__": lambda garbage: garbage.finalized(Closed),
    "error in __del__": lambda garbage: garbage.finalized(Raising),
    "weak reference": lambda garbage: garbage.watched(
        lambda node: weakref.ref(node, lambda reference: say("of a"))
    ),
    "weak reference with any arguments": lambda garbage: garbage.watched(
        lambda node: weakref.ref(node, lambda *arguments: say("of a"))
    ),
    "weak reference with a method": lambda garbage: garbage.watched(
        lambda node: weakref.ref(node, Callback().method)
    ),
    "weak reference with an object": lambda garbage: garbage.watched(
        lambda node: weakref.ref(node, Callback())
    ),
    "weak reference with progress": lambda garbage: garbage.watched(
        lambda node: weakref.ref(node, partial(progress, 0.7))
    ),
    "weakref.finalize": lambda garbage: garbage.watched(
        lambda node: weakref.finalize(node, say, "of a")
    ),
    "generator": lambda garbage: garbage.suspended(generator),
    "error in a generator": lambda garbage: garbage.suspended(raising_generator),
    "coroutine": lambda garbage: garbage.coroutine(),
    "async generator": lambda garbage: garbage.suspended_async(),
}


@pytest.mark.parametrize("as_cycle", [False, True], ids=["counted", "cycle"])
@pytest.mark.parametrize("leave", KINDS.values(), ids=KINDS)
async def test_a_finalizer_reports_nothing_for_the_job_that_it_interrupts(
    realtime: RealtimeRecorder, leave: Callable[[Garbage], Any], as_cycle: bool
) -> None:
    garbage = Garbage()

    async def first(run: JobRun) -> None:
        if (left := leave(garbage)) is not None:
            await left

    async def second(run: JobRun) -> None:
        say("before")
        garbage.drop(as_cycle=as_cycle)
        for _ in range(5):  # the event loop finalizes async generators
            await asyncio.sleep(0)
        say("after")

    for user_id, work in (("a", first), ("b", second)):
        await run_job(REPORT, work, {"userId": user_id}, broadcaster=realtime.broadcaster())
    said = "".join(each.data["delta"] for each in realtime.sent(REPORT.delta, user_id="b"))
    assert said == "before;after;"
    assert {each.data["progress"] for each in realtime.sent(REPORT.progress)} == {0.5}
    assert realtime.sent(REPORT.delta, user_id="a") == []


async def test_the_exception_handler_of_a_collected_task_reports_nothing(
    realtime: RealtimeRecorder,
) -> None:
    loop = asyncio.get_running_loop()
    held: list[object] = []
    handled: list[object] = []

    def handler(loop: object, context: dict[str, Any]) -> None:
        handled.append(context)
        say(f"of a: {context['exception']}")

    async def failing() -> None:
        raise ValueError("of a")

    async def first(run: JobRun) -> None:
        held.append(asyncio.create_task(failing()))
        await asyncio.sleep(0)

    async def second(run: JobRun) -> None:
        held.clear()
        gc.collect()

    before = loop.get_exception_handler()
    loop.set_exception_handler(handler)
    try:
        for user_id, work in (("a", first), ("b", second)):
            await run_job(REPORT, work, {"userId": user_id}, broadcaster=realtime.broadcaster())
    finally:
        loop.set_exception_handler(before)
    assert len(handled) == 1
    assert realtime.sent(REPORT.delta) == []


async def test_a_bound_function_reports_nothing_as_a_finalizer(realtime: RealtimeRecorder) -> None:
    async def work(run: JobRun) -> None:
        node = Node()
        weakref.finalize(node, bind_reporter(say), "finalized")
        del node
        gc.collect()
        say("went on")

    await run_job(REPORT, work, {"userId": "a"}, broadcaster=realtime.broadcaster())
    assert [each.data["delta"] for each in realtime.sent(REPORT.delta)] == ["went on;"]


async def test_code_that_looks_like_a_finalizer_reports(realtime: RealtimeRecorder) -> None:
    node = Node()

    class Resource:
        def __init__(self) -> None:
            self.is_open = True

        def __del__(self) -> None:
            self.is_open = False

        def use(self, reference: weakref.ref[Node]) -> None:
            say("used")

    def pieces() -> Generator[str, None, None]:
        with closing(generator()):
            yield "generated"

    async def work(run: JobRun) -> None:
        Resource().use(weakref.ref(node))
        for piece in pieces():
            say(piece)
        try:
            raise ValueError
        except ValueError:
            say("handled")

    await run_job(REPORT, work, {"userId": "b"}, broadcaster=realtime.broadcaster())
    said = "".join(each.data["delta"] for each in realtime.sent(REPORT.delta))
    assert said == "used;generated;handled;"
