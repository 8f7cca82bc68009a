"""Your framework in 60 lines: a queue with retries, whose users see their jobs progress.

Beside a server (synap-realtime serve): python -m examples.your_framework
"""

import queue
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from synap_realtime import JobError, progress
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications, report_run


@dataclass
class Job:  # what your framework calls a task, a message or a run
    do: Callable[..., Any]
    data: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    attempt: int = 1


class Queue:
    max_attempts = 3

    def __init__(self) -> None:
        self.jobs: queue.Queue[Job] = queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        while True:
            self.attempt(self.jobs.get())
            self.jobs.task_done()

    def attempt(self, job: Job) -> None:  # the adapter: a reporter for each attempt
        run = RunNotifications(JobType("report.creation"), job.id, job.attempt, self.max_attempts)
        reporter = Reporter(run, [Recipient.from_data(job.data)])
        try:
            with report_run(reporter):  # "started"; what the job says about itself goes there, too
                result = job.do(job)
            reporter.completed(result)
        except Exception as error:  # noqa: BLE001 - whatever a job raises
            retry_in_s = None if job.attempt == self.max_attempts else 0
            if reporter.attempt_failed(error, retry_in_s=retry_in_s):  # "retrying" or "failed"
                self.jobs.put(Job(job.do, job.data, job.id, job.attempt + 1))
        reporter.flush()  # it is out before another process can go on with the run


def create_report(job: Job) -> dict[str, str]:
    progress(0.5, "Rendering")
    if job.attempt == 1:
        raise JobError("The printer is busy.")
    return {"url": "/reports/7.pdf"}


if __name__ == "__main__":
    (jobs := Queue().jobs).put(Job(create_report, {"userId": "42", "requestId": "r1"}))
    jobs.join()
