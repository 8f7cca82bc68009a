"""What a fault has cost: the counts of one or more runs, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .traffic import Traffic

_PAUSE_S = 0.3  # a shorter time between two acknowledgements is no interruption


@dataclass(frozen=True, slots=True)
class Result:
    """The counts of a run.

    Attributes:
        acknowledged: notifications that were answered with 200.
        delivered: those that reached each subscriber.
        lost_and_reported: those that did not, and each subscriber that lacks one was informed of a
            gap after the acknowledgement.
        lost_silently: the other ones.
        doubled: notifications that came twice although their ids were known.
        disordered: notifications that came after a later one of the same publisher.
        without_service_s: how long nothing was acknowledged, as publishers with the SDK see it.
        deaf_s: the longest time from an acknowledgement to a subscriber that did not leave.
    """

    acknowledged: int
    delivered: int
    lost_and_reported: int
    lost_silently: int
    doubled: int
    disordered: int
    without_service_s: float
    deaf_s: float

    @property
    def is_exact(self) -> bool:
        return self.is_correct and self.delivered == self.acknowledged

    @property
    def is_correct(self) -> bool:
        return not (self.lost_silently or self.doubled or self.disordered)


def evaluate(traffic: Traffic) -> Result:
    """Count what was lost, doubled, out of order and late."""
    lost, silent, delays = set(), set(), [0.0]
    for received in traffic.received:
        last_gap = max(received.gaps, default=0.0)
        for id, at in traffic.acknowledged[received.room].items():
            if (received_at := received.ids.get(id)) is not None:
                if not received.is_restless:
                    delays.append(received_at - at)
                continue
            lost.add(id)
            if last_gap < at:
                silent.add(id)
    times = sorted(at for each in traffic.acknowledged.values() for at in each.values())
    pauses = [later - former for former, later in pairwise([traffic.began, *times])]
    return Result(
        acknowledged=len(times),
        delivered=len(times) - len(lost),
        lost_and_reported=len(lost - silent),
        lost_silently=len(silent),
        doubled=sum(each.doubled for each in traffic.received),
        disordered=sum(each.disordered for each in traffic.received),
        without_service_s=sum(pause for pause in pauses if pause > _PAUSE_S),
        deaf_s=max(delays),
    )


def sum_up(results: Sequence[Result]) -> Result:
    """Add counts; take the longest times."""
    return Result(
        acknowledged=sum(each.acknowledged for each in results),
        delivered=sum(each.delivered for each in results),
        lost_and_reported=sum(each.lost_and_reported for each in results),
        lost_silently=sum(each.lost_silently for each in results),
        doubled=sum(each.doubled for each in results),
        disordered=sum(each.disordered for each in results),
        without_service_s=max(each.without_service_s for each in results),
        deaf_s=max(each.deaf_s for each in results),
    )


_HEAD = (
    "| fault | runs | acknowledged | delivered | lost and reported | lost and not reported "
    "| doubled | out of order | s without service | s deaf |\n"
    "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
)


def format_table(results: Mapping[str, Sequence[Result]]) -> str:
    """Return a table in Markdown: a line for each fault, and their sum."""
    lines = [_line(name, runs) for name, runs in results.items() if runs]
    every = [each for runs in results.values() for each in runs]
    return "\n".join([_HEAD, *lines, _line("**all**", every)])


def _line(name: str, runs: Sequence[Result]) -> str:
    total = sum_up(runs)
    counts = (
        total.acknowledged,
        total.delivered,
        total.lost_and_reported,
        total.lost_silently,
        total.doubled,
        total.disordered,
    )
    times = (total.without_service_s, total.deaf_s)
    cells = [name, str(len(runs)), *(f"{n:,}" for n in counts), *(f"{s:.1f}" for s in times)]
    return f"| {' | '.join(cells)} |"
