"""A job that outlives its subscribers' tokens many times, followed by every client.

    $ python -m tests.chaos.long_job --duration 1200 --token-life 60 --every 10
    the job took 1209.4 s, exit code 0
    useJob: 120 of 120 labels, statuses ['idle', 'pending', 'success'], 41 tokens, 0 reconnects, …
    useSynapRealtime: 120 of 120 labels, statuses ['pending', 'success'], 41 tokens, 0 reconnects, …
    follow_job: 120 of 120 labels, statuses ['pending', 'success'], 20 tokens, 0 reconnects, …
    sync: 120 of 120 labels, statuses ['pending', 'success'], 20 tokens, 19 reconnects, …
    the server logged 0 lines meanwhile
    nothing was wrong

A real server with keys, a job in a process of its own, and subscribers whose tokens come from a
function: Chromium through ``useJob`` and ``useSynapRealtime``, ``follow_job`` and
``subscribe_sync``. Prints what each of them received and how often it asked for a token, and exits
with 1 if one of them missed or repeated a notification, or took a connection's end for the job's.

``tests/chaos/test_long_job.py`` runs a short one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synap_realtime import follow_job, progress, subscribe_sync
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun, delta
from synap_realtime.tokens import mint_token
from tests.support.command_line import COMMAND
from tests.support.program import free_port

from ..browser.chromium import launched
from ..browser.pages import KEY, SECRET, bundle, environment, site

REQUEST = "long-1"
FAMILY = "long.job"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run of the scenario; all in seconds."""

    duration_s: float
    token_life_s: float
    every_s: float

    @property
    def steps(self) -> int:
        return max(1, round(self.duration_s / self.every_s))

    @property
    def labels(self) -> list[str]:
        return [f"Step {number}" for number in range(1, self.steps + 1)]

    @property
    def text(self) -> str:
        return "".join(f"{label}. " for label in self.labels)

    def most_tokens(self, elapsed_s: float) -> float:
        """How many a subscriber may ask for: see ``synap.token_expiring`` in PROTOCOL.md."""
        life_s = self.token_life_s
        # A new one is asked for 30 s before the end, or after a third of a short life.
        life_s = life_s - 30 if life_s >= 45 else life_s / 3
        return elapsed_s / max(life_s - 1, 0.5) + 3  # ``exp`` is in whole seconds


@dataclass(slots=True)
class Received:
    """What one subscriber received."""

    labels: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    text: str = ""
    is_text_complete: bool = True
    result: Any = None
    error: str | None = None
    tokens: int = 0
    reconnects: int = 0

    def add_status(self, status: str) -> None:
        if self.statuses[-1:] != [status]:
            self.statuses.append(status)

    def add_label(self, label: str | None) -> None:
        if label is not None and self.labels[-1:] != [label]:
            self.labels.append(label)


class Tokens:
    """A token endpoint that counts for whom it mints."""

    def __init__(self, life_s: float) -> None:
        self._life_s = life_s

    def mint(self, received: Received) -> str:
        received.tokens += 1
        return mint_token("1", rooms=["request_*"], secret=SECRET, expires_in_s=self._life_s)


async def job(plan: Plan) -> None:
    """Be the job: this process's part with ``--job``."""

    async def work(run: JobRun) -> dict[str, int]:
        for number, label in enumerate(plan.labels, start=1):
            await asyncio.sleep(plan.every_s)
            progress(number / plan.steps, label)
            delta(f"{label}. ")
        return {"steps": plan.steps}

    data = {"userId": "1", "requestId": REQUEST}
    await run_job(FAMILY, work, data, stall_after_s=max(plan.every_s * 3, 5))


async def follow(url: str, tokens: Tokens, received: Received) -> None:
    async def token() -> str:
        return tokens.mint(received)

    async with aclosing(follow_job(REQUEST, url, token)) as states:
        async for state in states:
            received.add_status(state.status)
            received.add_label(state.label)
            received.text, received.is_text_complete = state.text, state.is_text_complete
            received.result, received.error = dict(state.result), state.error


def listen(url: str, tokens: Tokens, received: Received) -> None:
    """``subscribe_sync``, in a thread."""

    def on_state_change(state: Any) -> None:
        received.reconnects += state.status == "reconnecting"

    room = f"request_{REQUEST}"

    def token() -> str:
        return tokens.mint(received)

    with closing(
        subscribe_sync(
            room, url, token, after="earliest", max_reconnects=None, on_state_change=on_state_change
        )
    ) as notifications:
        for each in notifications:
            received.ids.append(each.id or "")
            word = each.type.rpartition(".")[2]
            if word == "progress":
                received.labels.append(str(each.data["label"]))
            if word == "delta":
                assert each.fold is not None
                received.text = received.text[: each.fold["offset"]] + str(each.data["delta"])
            else:
                received.add_status(each.status or "")
            if each.status != "pending":
                received.result = {k: v for k, v in each.data.items() if k == "steps"}
                return


async def show(
    url: str, origin: str, tokens: Tokens, page: Any, received: Received, raw: Received
) -> None:
    """The hooks in Chromium: ``useJob``, and ``useSynapRealtime`` for the user's room."""
    await page.expose_function("mintForJob", lambda: tokens.mint(received))
    await page.expose_function("mintForRoom", lambda: tokens.mint(raw))
    await page.goto(f"{origin}/page.html")
    await page.evaluate("([url, id]) => follow(url, id)", [url, REQUEST])
    await page.wait_for_function("globalThis.isOver", timeout=0, polling=200)
    found = await page.evaluate("({ states, messages, connections: roomStates })")
    for state in found["states"]:
        received.add_status(state["status"])
        received.add_label(state.get("label"))
        received.text, received.is_text_complete = state["text"], state["isTextComplete"]
        received.result, received.error = state.get("result"), state.get("error")
    received.reconnects = sum(
        before["connection"] == "open" and after["connection"] in ("waiting", "connecting")
        for before, after in zip(found["states"], found["states"][1:], strict=False)
    )
    for message in found["messages"]:
        raw.ids.append(message["id"])
        raw.add_status(message["status"])
        if message["type"].endswith(".progress"):
            raw.labels.append(message["data"]["label"])
        if message["status"] == "success":
            raw.result = message["data"]
    raw.reconnects = found["connections"].count("waiting")


def faults_of(
    name: str, received: Received, plan: Plan, elapsed_s: float, *, has_text: bool
) -> list[str]:
    """What is wrong with what a subscriber received."""
    found = []
    # While a subscriber reconnects, the log keeps the last progress only.
    may_miss = received.reconnects
    order = [plan.labels.index(label) for label in received.labels]
    is_right = order == sorted(set(order)) and received.labels[-1:] == plan.labels[-1:]
    if not is_right or len(received.labels) < plan.steps - may_miss:
        missed = [each for each in plan.labels if each not in received.labels]
        found.append(f"{name}: labels missed {missed}, received {len(received.labels)}")
    if len(set(received.ids)) != len(received.ids):
        found.append(f"{name}: {len(received.ids) - len(set(received.ids))} notifications twice")
    if received.statuses[-1:] != ["success"] or set(received.statuses) - {
        "idle",
        "pending",
        "success",
    }:
        found.append(f"{name}: statuses {received.statuses}")
    if not received.result or received.result.get("steps") != plan.steps:
        found.append(f"{name}: result {received.result}")
    if has_text and (received.text != plan.text or not received.is_text_complete):
        found.append(f"{name}: the text differs, complete={received.is_text_complete}")
    most = plan.most_tokens(elapsed_s)
    if not plan.duration_s / plan.token_life_s - 1 <= received.tokens <= most:
        found.append(f"{name}: asked for {received.tokens} tokens, expected at most {most:.0f}")
    return found


async def run(plan: Plan, folder: Path) -> list[str]:
    """Run the scenario; what was wrong."""
    bundle("../chaos/long_job.tsx", folder / "page")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    received = {name: Received() for name in ("useJob", "useSynapRealtime", "follow_job", "sync")}
    tokens = Tokens(plan.token_life_s)
    async with AsyncExitStack() as stack:
        origin = stack.enter_context(site(folder))
        with log.open("wb") as output:
            server = await asyncio.create_subprocess_exec(
                *(COMMAND, "serve", "--port", str(port), "--token-leeway-s", "0"),
                env={**os.environ, **environment(origin)},
                stderr=output,
            )
        stack.push_async_callback(_stop, server)
        async with asyncio.timeout(20):
            while b"listening on" not in log.read_bytes():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)
        started = log.stat().st_size
        browser = await stack.enter_async_context(launched())
        page = await browser.new_page()
        began = time.monotonic()
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __spec__.name, "--job", json.dumps(asdict(plan))),
            env={**os.environ, "REALTIME_URL": url, "REALTIME_API_KEY": KEY},
        )
        stack.push_async_callback(_stop, worker)
        async with asyncio.timeout(plan.duration_s + 60), asyncio.TaskGroup() as subscribers:
            subscribers.create_task(
                show(url, origin, tokens, page, received["useJob"], received["useSynapRealtime"])
            )
            subscribers.create_task(follow(url, tokens, received["follow_job"]))
            subscribers.create_task(asyncio.to_thread(listen, url, tokens, received["sync"]))
        elapsed_s = time.monotonic() - began
        print(f"the job took {elapsed_s:.1f} s, exit code {await worker.wait()}")
        said = log.read_bytes()[started:].decode().splitlines()
    faults = []
    for name, each in received.items():
        print(
            f"{name}: {len(each.labels)} of {plan.steps} labels, statuses {each.statuses}, "
            f"{each.tokens} tokens, {each.reconnects} reconnects, result {each.result}"
        )
        faults += faults_of(
            *(name, each, plan, elapsed_s),
            has_text=name != "useSynapRealtime",
        )
    print(f"the server logged {len(said)} lines meanwhile", *said[:20], sep="\n  ")
    faults += [f"server: {line}" for line in said if " WARN" in line or " ERROR" in line]
    return faults


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--duration", type=float, default=1200.0, help="of the job, in seconds")
    parser.add_argument("--token-life", type=float, default=60.0, help="of each token, in seconds")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between progress")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        asyncio.run(job(Plan(**json.loads(given.job))))
        return 0
    plan = Plan(given.duration, given.token_life, given.every)
    with tempfile.TemporaryDirectory() as folder:
        faults = asyncio.run(run(plan, Path(folder)))
    print(*(faults or ["nothing was wrong"]), sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
