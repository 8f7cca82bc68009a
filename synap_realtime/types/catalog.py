"""Collect the payload type of each notification type: built-in and declared ones."""

from __future__ import annotations

import contextlib
import importlib
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..jobs.job_types import BUILTIN_JOB_TYPES, JobType
from ..protocol.notification import parse_notification
from ..protocol.payloads import (
    JobCancelled,
    JobDelta,
    JobFailed,
    JobProgress,
    JobRetrying,
    JobStarted,
)


@dataclass(frozen=True, slots=True)
class Data:
    """The type of ``data`` in one type of notification.

    Attributes:
        payload: a pydantic model, a TypedDict or a dataclass; None: any JSON object.
        is_result: whether it is a job's result, which is ``Truncated`` when it does not fit.
    """

    payload: Any = None
    is_result: bool = False


Catalog = Mapping[str, Data]
"""By notification type, in the order of declaration."""


def build_catalog(own: Mapping[str, object]) -> Catalog:
    """Combine the built-in job types and the declared ones, which override built-in types.

    Args:
        own: declarations by the name to use in errors: a :class:`JobType`, a mapping from types to
            payloads, or a list of such.

    Raises:
        InvalidArgumentError: a declaration is none of these, or a type has two payloads.
    """
    catalog: dict[str, Data] = {}
    for job_type in BUILTIN_JOB_TYPES:
        catalog.update(_of_job_type(job_type))
    theirs: dict[str, Data] = {}
    for name, declared in own.items():
        for type, data in _entries(name, declared):
            if theirs.setdefault(type, data) != data:
                raise InvalidArgumentError(name, f"{type!r} already has another payload")
    return catalog | theirs


def _of_job_type(job_type: JobType) -> dict[str, Data]:
    return {
        job_type.started: Data(JobStarted),
        job_type.progress: Data(JobProgress),
        job_type.delta: Data(JobDelta),
        job_type.retrying: Data(JobRetrying),
        job_type.completed: Data(job_type.payload, is_result=True),
        job_type.failed: Data(JobFailed),
        job_type.cancelled: Data(JobCancelled),
    }


def _entries(name: str, declared: object) -> Iterator[tuple[str, Data]]:
    if isinstance(declared, JobType):
        declared_types = _of_job_type(declared)
    elif isinstance(declared, Mapping):
        declared_types = {type: Data(payload) for type, payload in declared.items()}
    elif isinstance(declared, Sequence) and not isinstance(declared, str | bytes):
        for position, one in enumerate(declared):
            yield from _entries(f"{name}[{position}]", one)
        return
    else:
        raise InvalidArgumentError(
            name, f"expected a JobType, a mapping from types to models, or a list; got {declared!r}"
        )
    for type, data in declared_types.items():
        try:
            parse_notification({"type": type, "data": {}})
        except InvalidArgumentError as error:
            raise InvalidArgumentError(name, f"{type!r}: {error.problem}") from None
        yield type, data


def load(reference: str) -> object:
    """Import ``module:NAME``, also from the working directory.

    Raises:
        InvalidArgumentError: there is no such module or name, or the import failed.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise InvalidArgumentError(reference, "expected module:NAME, such as app.jobs:REPORT")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is reserved for the types
            imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the module's code may raise anything
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidArgumentError(reference, f"cannot import {module}: {said}") from error
    try:
        return operator.attrgetter(name)(imported)
    except AttributeError:
        raise InvalidArgumentError(reference, f"{module} has no {name}") from None
