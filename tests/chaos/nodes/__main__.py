"""Let things fail at random moments, and print what was lost, doubled and late.

    $ scripts/chaos --minutes 10 --seed 7
    kill -9 of the primary: 1,034 acknowledged, 0 lost silently, 3.1 s without service, …
    …
    | fault | runs | acknowledged | delivered | lost and reported | lost and not reported | …

Two nodes with two workers each run behind a balancer on two Valkeys with three Sentinels, and for a
quarter of the time on one Valkey, each over a link of its own. Publishers use the SDK; of the
subscribers of each room, one uses the package, one is a WebSocket that resumes from its cursor, and
one leaves and returns. In a third of the runs, connections are killed or a node dies meanwhile.
Exits with 1 if anything was lost silently, doubled or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from .deployment import Deployment
from .faults import LINK_FAULTS, SENTINEL_FAULTS, Fault, kill_connections, kill_node
from .report import Result, evaluate, format_table
from .traffic import Traffic, run_traffic

_MEANWHILE: tuple[Fault, ...] = (kill_connections, kill_node)
_AT_LEAST_S = 3.0  # of publishing after a fault


async def run_faults(
    deployment: Deployment, faults: Mapping[str, Fault], chance: random.Random, end: float
) -> dict[str, list[Result]]:
    """Run faults in random order until a time."""
    results: dict[str, list[Result]] = defaultdict(list)
    names: list[str] = []
    while time.monotonic() < end:
        if not names:  # each comes once before one comes again
            names = chance.sample(list(faults), len(faults))
        name = names.pop()
        has_second = chance.random() < 1 / 3

        async def fault(
            _traffic: Traffic, first: Fault = faults[name], *, has_second: bool = has_second
        ) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.to_thread(first, deployment, chance))
                if has_second:
                    await asyncio.sleep(chance.uniform(0, 3))
                    second = chance.choice(_MEANWHILE)
                    group.create_task(asyncio.to_thread(second, deployment, chance))

        traffic = await run_traffic(
            *(deployment.url, fault),
            before_s=chance.uniform(0.2, 2),
            after_s=_AT_LEAST_S,
        )
        result = evaluate(traffic)
        results[name].append(result)
        print(
            f"{name}{' and more' if has_second else ''}: {result.acknowledged} acknowledged, "
            f"{result.lost_and_reported} lost and reported, {result.lost_silently} lost silently, "
            f"{result.doubled} doubled, {result.disordered} out of order, "
            f"{result.without_service_s:.1f} s without service, {result.deaf_s:.1f} s deaf",
            flush=True,
        )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long; default: 10")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is random")
    parser.add_argument("--nodes", type=int, default=2, help="default: 2")
    parser.add_argument("--workers", type=int, default=2, help="of each node; default: 2")
    given = parser.parse_args()
    print(f"seed {given.seed}")
    chance = random.Random(given.seed)
    options = ("--workers", str(given.workers))
    began = time.monotonic()
    results: dict[str, list[Result]] = {}
    for sentinels, faults, part in ((3, SENTINEL_FAULTS, 0.75), (0, LINK_FAULTS, 1.0)):
        end = began + given.minutes * 60 * part
        with (
            tempfile.TemporaryDirectory() as folder,
            Deployment(
                Path(folder), nodes=given.nodes, options=options, sentinels=sentinels
            ) as deployment,
        ):
            results |= asyncio.run(run_faults(deployment, faults, chance, end))
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes, seed {given.seed}\n")
    print(format_table(results))
    return not all(each.is_correct for runs in results.values() for each in runs)


if __name__ == "__main__":
    sys.exit(main())
