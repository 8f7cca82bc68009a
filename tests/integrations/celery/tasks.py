"""The tasks of these tests' worker, configured by ``BROKER_URL`` and ``REALTIME_URL``."""

from __future__ import annotations

import contextvars
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import celery
import httpx
from celery import signals
from celery.exceptions import Ignore, Reject, Retry

from synap_realtime import InvalidInputError, JobError, bind_reporter, delta, progress
from synap_realtime.broadcast import background_broadcaster
from synap_realtime.integrations.celery import RealtimeTask
from synap_realtime.jobs import Recipient

app = celery.Celery("tests", broker=os.environ.get("BROKER_URL"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    # How soon what a killed worker had taken comes back: it is looked for each second. A task that
    # only waits for longer than this would run twice.
    broker_transport_options={
        "visibility_timeout": int(os.environ.get("VISIBILITY_TIMEOUT_S", "3600")),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,
    },
    result_backend=os.environ.get("RESULT_BACKEND", os.environ.get("BROKER_URL")),
    result_backend_transport_options={"retry_policy": {"max_retries": 1}},
    task_publish_retry_policy={"max_retries": 1},
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
    worker_soft_shutdown_timeout=float(os.environ.get("SOFT_S", "0")),
)


def realtime_task(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    make: Callable[[Callable[..., Any]], Any] = app.task(
        base=RealtimeTask, job_type="report.creation", bind=True, **options
    )
    return make


@realtime_task()
def works(self: Any, title: str, *, user_id: str, request_id: str) -> dict[str, str]:
    progress(0.5, "Rendering")
    return {"title": title}


@realtime_task(max_retries=3)
def tries_again(self: Any, *, user_id: str) -> dict[str, int]:
    try:
        if self.request.retries < 2:
            raise JobError("The printer is busy.")
    except JobError as error:
        raise self.retry(exc=error, countdown=0.05) from error
    return {"attempt": self.request.retries + 1}


@realtime_task(
    autoretry_for=(RuntimeError,), max_retries=1, retry_backoff=False, default_retry_delay=0.05
)
def gives_up(self: Any, data: dict[str, str]) -> None:
    raise RuntimeError("password=hunter2")


@realtime_task(recipient=lambda args, kwargs: Recipient(f"user-{args[0]}"))
def refuses(self: Any, number: int) -> None:
    raise InvalidInputError("It is empty.")


@realtime_task(soft_time_limit=0.3)
def takes_too_long(self: Any, *, user_id: str) -> None:
    time.sleep(30)


@realtime_task(time_limit=0.5)
def takes_far_too_long(self: Any, *, user_id: str) -> None:
    time.sleep(30)


def _lose(marker: str) -> dict[str, bool]:
    """Wait to be killed, the first time."""
    progress(None, str(os.getpid()))
    if not os.path.exists(marker):  # noqa: PTH110
        open(marker, "w").close()  # noqa: PTH123
        time.sleep(30)
    return {"done": True}


@realtime_task()
def is_lost(self: Any, marker: str, *, user_id: str) -> dict[str, bool]:
    return _lose(marker)


@realtime_task(acks_late=True, reject_on_worker_lost=True)
def is_lost_and_runs_again(self: Any, marker: str, *, user_id: str) -> dict[str, bool]:
    return _lose(marker)


@realtime_task()
def waits(self: Any, *, user_id: str) -> None:
    progress(None, "waiting")
    time.sleep(30)


@realtime_task()
def looks_away(self: Any, *, user_id: str) -> None:
    raise Ignore


@realtime_task()
def hands_over(self: Any, *, user_id: str) -> None:
    raise self.replace(works.si("Q4", user_id=user_id, request_id="r2"))


@realtime_task(acks_late=True)
def is_put_back(self: Any, marker: str, *, user_id: str) -> dict[str, bool]:
    if not os.path.exists(marker):  # noqa: PTH110
        open(marker, "w").close()  # noqa: PTH123
        raise Reject("Not now.", requeue=True)
    return {"done": True}


@realtime_task(acks_late=True)
def is_turned_away(self: Any, *, user_id: str) -> None:
    raise Reject("Never.", requeue=False)


@realtime_task(autoretry_for=(Exception,), max_retries=3, default_retry_delay=0.05)
def retries_all(self: Any, *, user_id: str) -> None:
    raise InvalidInputError("It is empty.")


@realtime_task(acks_late=True, acks_on_timeout=False, time_limit=0.5)
def runs_again_when_late(self: Any, marker: str, *, user_id: str) -> dict[str, bool]:
    return _lose(marker)


@realtime_task(max_retries=1)
def looks_when_it_retries(self: Any, seen: str, *, user_id: str) -> dict[str, bool]:
    if self.request.retries == 0:
        raise self.retry(exc=JobError("The printer is busy."), countdown=0)
    return {"done": True}


@signals.before_task_publish.connect  # type: ignore[untyped-decorator]
def _look(sender: str, headers: Any, body: Any, **_: object) -> None:
    """Record what its user has received when the next attempt goes to the broker."""
    if headers.get("retries") and sender.endswith("looks_when_it_retries"):
        room = f"{os.environ['REALTIME_URL']}/rooms/user_{body[1]['user_id']}/history"
        types = [message["type"] for message in httpx.get(room).json()["notifications"]]
        with open(body[0][0], "w") as seen:  # noqa: PTH123
            seen.write(" ".join(types))


def _nobody(args: object, kwargs: object) -> Recipient:
    raise KeyError("who")


@realtime_task(recipient=_nobody)
def knows_nobody(self: Any) -> int:
    return 7


@realtime_task()
def is_nobodys(self: Any) -> int:
    return 7


# What leaves the extent of a task, in each kind of pool


def _say(what: str, doc: str) -> None:
    """Text keeps all that is said; of progress only the last in a tenth of a second goes out."""
    delta(f"{what} {doc};")
    progress(0.5, f"{what} {doc}")


def _report_when_over(context: contextvars.Context, doc: str, gate: str) -> None:
    """A thread, or a greenlet, that goes on after the task, in the task's context."""
    room = f"{os.environ['REALTIME_URL']}/rooms/user_{doc}/history"
    with httpx.Client() as client:
        while "report.creation.completed" not in client.get(room).text:
            time.sleep(0.02)
    context.run(_say, "late", doc)
    background_broadcaster().flush()
    with open(f"{gate}-{doc}", "w"):  # noqa: PTH123
        pass


def _fork(doc: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            _say("forked", doc)
            background_broadcaster().flush()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)  # one thread for all tasks of the process


@app.task  # type: ignore[untyped-decorator]
def is_untold(doc: str) -> None:
    _say("untold", doc)


@realtime_task(max_retries=1)
def leaves(self: Any, gate: str, doc: str, fork: bool, *, user_id: str) -> str:
    _say("begin", doc)
    if self.request.retries == 0:
        raise self.retry(exc=JobError("Again."), countdown=0)
    _pool().submit(bind_reporter(_say), "bound", doc).result()
    _pool().submit(_say, "unbound", doc).result()
    if fork:
        _fork(doc)
    context = contextvars.copy_context()
    threading.Thread(target=_report_when_over, args=[context, doc, gate]).start()
    is_untold.apply(args=[doc])
    _say("end", doc)
    return doc


@app.task  # type: ignore[untyped-decorator]
def outside(doc: str) -> None:
    """A task without a reporter, which a worker's thread runs after one that had one."""
    _say("outside", doc)


@realtime_task()
def inner(self: Any, doc: str, *, user_id: str) -> None:
    _say("inner", doc)


@realtime_task()
def outer(self: Any, doc: str, *, user_id: str) -> None:
    _say("before", doc)
    inner.apply(kwargs={"doc": doc, "user_id": f"{user_id}-inner"})
    is_untold.apply(args=[doc])
    _say("after", doc)


@realtime_task()
def replaces_itself(self: Any, doc: str, *, user_id: str) -> None:
    _say("before", doc)
    raise self.replace(inner.si(doc, user_id=user_id))


# What ends a task


@realtime_task()
def exits(self: Any, *, user_id: str) -> None:
    raise SystemExit(3)


@realtime_task()
def is_interrupted(self: Any, *, user_id: str) -> None:
    raise KeyboardInterrupt


@realtime_task(max_retries=1)
def flaps(self: Any, *, user_id: str) -> str:
    progress(0.5, f"{self.request.retries}")
    if self.request.retries == 0:
        raise self.retry(exc=JobError("Again."), countdown=0)
    return user_id


@realtime_task()
def is_put_back_too_late(self: Any, *, user_id: str) -> None:
    """Acknowledged early, it does not come back."""
    raise Reject("Not now.", requeue=True)


@realtime_task(autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def fails_as_a_group(self: Any, *, user_id: str) -> None:
    raise ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [InvalidInputError("Empty.")])])


class NumberedError(JobError):
    """Celery cannot pickle one that is made in its own way, and shows another in its place."""

    def __init__(self, number: int, *, hint: str) -> None:
        super().__init__(f"{number}: {hint}")
        self.lock = threading.Lock()


@realtime_task()
def fails_with_what_cannot_be_pickled(self: Any, *, user_id: str) -> None:
    raise NumberedError(7, hint="No paper.")


@realtime_task(max_retries=0)
def runs_out(self: Any, *, user_id: str) -> None:
    try:
        raise JobError("No paper.")
    except JobError:
        self.retry(countdown=0)


@realtime_task()
def returns_what_celery_cannot_keep(self: Any, *, user_id: str) -> object:
    return object()


@realtime_task(
    autoretry_for=(JobError,),
    retry_kwargs={"max_retries": 5},
    retry_backoff=False,
    default_retry_delay=0,
)
def counts_to_six(self: Any, *, user_id: str) -> Any:
    progress(None, f"{self.request.retries + 1}")
    if self.request.retries < 5:
        raise JobError("Again.")
    return self.request.retries + 1


@realtime_task()
def counts_to_two(self: Any, *, user_id: str) -> None:
    progress(None, f"{self.request.retries + 1}")
    raise self.retry(exc=JobError("Again."), countdown=0, max_retries=1)


@realtime_task(max_retries=None)
def counts_without_end(self: Any, *, user_id: str) -> Any:
    progress(None, f"{self.request.retries + 1}")
    if self.request.retries < 4:
        raise self.retry(exc=JobError("Again."), countdown=0)
    return self.request.retries + 1


@app.task  # type: ignore[untyped-decorator]
def number(n: int) -> int:
    return n


@app.task  # type: ignore[untyped-decorator]
def total(numbers: Any) -> dict[str, int]:
    progress(0.9, "Adding")
    return {"total": sum(numbers)}


@app.task  # type: ignore[untyped-decorator]
def boom(*args: Any) -> None:
    raise JobError("No paper.")


@app.task(bind=True)  # type: ignore[untyped-decorator]
def tries_twice(self: Any, n: int) -> int:
    if self.request.retries == 0:
        raise self.retry(exc=JobError("Again."), countdown=0)
    return n


@app.task(bind=True)  # type: ignore[untyped-decorator]
def hands_on(self: Any, kind: str) -> Any:
    """Replaces itself, without our base."""
    raise self.replace(REPLACEMENTS[kind]())


@app.task  # type: ignore[untyped-decorator]
def sleeps() -> None:
    time.sleep(30)


@app.task(base=RealtimeTask, job_type="other.kind")  # type: ignore[untyped-decorator]
def other(n: int, *, user_id: str) -> int:
    progress(0.7, "Other")
    return n


REPLACEMENTS: dict[str, Callable[[], Any]] = {
    "plain": lambda: number.si(3),
    "group": lambda: celery.group(number.si(1), number.si(2)),
    "chord": lambda: celery.chord([number.si(1), number.si(2)], total.s()),
    "chain": lambda: celery.chain(number.si(1), tries_twice.s()),
    "chain_with_group": lambda: celery.chain(
        number.si(1), celery.group(number.si(2), number.si(3))
    ),
    "retried": lambda: tries_twice.si(3),
    "other": lambda: other.si(3, user_id="nobody"),
    "again": lambda: again("group"),
    "chord_again": lambda: celery.chord([again("plain"), number.si(2)], total.s()),
    "failing": lambda: boom.si(),
    "failing_group": lambda: celery.group(number.si(1), boom.si()),
    "failing_chord": lambda: celery.chord([number.si(1), boom.si()], total.s()),
    "failing_body": lambda: celery.chord([number.si(1)], boom.s()),
    "failing_chain": lambda: celery.chain(boom.si(), number.si(1)),
    "handed_on": lambda: hands_on.si("plain"),
    "handed_on_chord": lambda: hands_on.si("chord"),
    "handed_on_failing": lambda: hands_on.si("failing"),
    "handed_on_part": lambda: celery.group(number.si(1), hands_on.si("plain")),
    "handed_on_failing_part": lambda: celery.group(number.si(1), hands_on.si("failing")),
    "unknown": lambda: app.signature("no.such.task"),
    "unknown_part": lambda: celery.group(number.si(1), app.signature("no.such.task")),
    "late": lambda: sleeps.si().set(time_limit=0.5),
    "late_part": lambda: celery.group(number.si(1), sleeps.si().set(time_limit=0.5)),
}


def again(kind: str) -> Any:
    name, kwargs = f"{__name__}.replaces", {"user_id": "nobody"}
    return app.signature(name, args=[kind], kwargs=kwargs, immutable=True)


@realtime_task()
def replaces(self: Any, kind: str, *, user_id: str) -> Any:
    progress(0.1, "Splitting")
    raise self.replace(REPLACEMENTS[kind]())


@realtime_task()
def stays(self: Any, *, user_id: str) -> str:
    progress(None, str(os.getpid()))
    end = time.monotonic() + float(os.environ.get("STAYS_S", "30"))
    while time.monotonic() < end:  # each sleep is short: a signal's handler comes soon
        time.sleep(0.02)
    return "stayed"


@realtime_task(acks_late=True)
def stays_late(self: Any, marker: str, *, user_id: str) -> dict[str, bool]:
    return _lose(marker)


@realtime_task()
def waits_for(self: Any, gate: str, *, user_id: str) -> str:
    progress(None, "waiting")
    while not os.path.exists(gate):  # noqa: PTH110
        time.sleep(0.02)
    return "done"


@realtime_task()
def fails_after(self: Any, gate: str, *, user_id: str) -> None:
    waits_for.run(gate, user_id=user_id)
    raise JobError("No paper.")


@realtime_task(max_retries=3)
def retries_after(self: Any, gate: str, *, user_id: str) -> None:
    waits_for.run(gate, user_id=user_id)
    raise self.retry(exc=JobError("No paper."), countdown=0)


@realtime_task()
def returns_a_replacement(self: Any, *, user_id: str) -> Any:
    progress(0.1, "Splitting")
    return self.replace(number.si(3))


@realtime_task()
def raises_retry(self: Any, sends: bool, *, user_id: str) -> str:
    """Ask for a retry without ``self.retry()``, with or without sending the next attempt."""
    if self.request.retries:
        return "again"
    if sends:
        self.signature_from_request(self.request, retries=1).apply_async()
    raise Retry(exc=JobError("No paper."))


@realtime_task(
    acks_late=True, autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=False,
    default_retry_delay=0.05,
)  # fmt: skip
def replies(
    self: Any, folder: str, count: int, trouble: str, *, user_id: str, request_id: str
) -> dict[str, str]:
    """Write a reply, as an LLM does. A third of it is written when the trouble comes.

    Args:
        folder: each execution puts a file there, and so does the test, to let zombies end.
        count: how many pieces it has.
        trouble: ``fails``: the first attempt raises. ``hangs``: the first process stops; the test
            continues it when another one has taken the task.
    """
    execution = len(list(Path(folder).glob("execution*")))
    Path(folder, f"execution{execution}").touch()
    chance = random.Random(execution)
    text = ""
    for number in range(count):
        piece = chance.choice([f"{execution} ", "tok", "é", "😀", "\n", '"', "a longer token "])
        delta(piece)
        text += piece
        time.sleep(0.002)
        if number == count // 3 and execution == 0:
            if trouble == "fails":
                raise ConnectionError("The model is overloaded.")
            os.kill(os.getpid(), signal.SIGSTOP)
    while execution == 0 and not Path(folder, "over").exists():
        time.sleep(0.02)
    return {"text": text}
