"""One target in one process: ``python -m tests.fuzz.worker``, started by ``scripts/fuzz``."""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import importlib.util
import mmap
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import FrameType

from .mutation import Mutator
from .target import CORPUS, RuleBrokenError, Target
from .targets import load

FIXED_SEED = 1
"""Of the mutations that are the same in each run."""

MAX_CPU_S = 1.0
"""For one input. Processor time, so that a busy machine fails nothing."""

HANG_S = 120.0
"""An input that takes so long has hung."""

CHECK_EVERY = 500
"""Inputs between two looks at the memory."""

MAX_BLOCKS = 100_000
MAX_BLOCKS_PER_INPUT = 0.5
"""Growth, in blocks of Python's allocator: both have to be exceeded. Caches fill once; a leak goes
on with each input."""

MAX_GROWTH_BYTES = 128 * 1024 * 1024
"""Of the resident memory, after a third of the inputs or of the time."""

_SIZE_BYTES = 8


class InputFile:
    """The input under way, where the parent finds it however this process ends."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        size = _SIZE_BYTES + max_bytes
        path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)

    def write(self, data: bytes) -> None:
        self._map[_SIZE_BYTES : _SIZE_BYTES + len(data)] = data
        self._map[:_SIZE_BYTES] = len(data).to_bytes(_SIZE_BYTES, "big")


def last_input(path: Path) -> bytes:
    """What :class:`InputFile` holds."""
    if not path.exists():
        return b""
    content = path.read_bytes()
    size = int.from_bytes(content[:_SIZE_BYTES], "big")
    return content[_SIZE_BYTES : _SIZE_BYTES + size]


class Watch:
    """Runs inputs, each within its time, and all of them within flat memory."""

    def __init__(
        self,
        target: Target,
        is_warm: Callable[[int], bool] = lambda _inputs: True,
        file: InputFile | None = None,
    ) -> None:
        """
        Args:
            is_warm: whether the memory is looked at, after so many inputs: caches fill first.
        """
        self._target = target
        self._file = file
        self._is_warm = is_warm
        self._base: tuple[int, int, int] | None = None
        self._digest = hashlib.sha256()
        self.inputs = 0

    @property
    def digest(self) -> str:
        """A hash of all inputs, in their order: equal if two runs fed the same."""
        return self._digest.hexdigest()[:16]

    def run(self, data: bytes) -> None:
        """
        Raises:
            Exception: a rule is broken.
        """
        self._digest.update(len(data).to_bytes(8, "big") + data)
        if self._file is not None:
            self._file.write(data)
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        begun_s = time.process_time()
        self._target.check(data)
        took_s = time.process_time() - begun_s
        faulthandler.cancel_dump_traceback_later()
        if took_s > MAX_CPU_S:
            raise RuleBrokenError(f"an input takes at most {MAX_CPU_S:g} s, not {took_s:.1f} s")
        self.inputs += 1
        if self.inputs % CHECK_EVERY == 0 and self._is_warm(self.inputs):
            self.check_memory()

    def check_memory(self) -> str:
        """
        Returns:
            The growth, in words.

        Raises:
            RuleBrokenError: memory grows with the inputs.
        """
        gc.collect()
        now = self.inputs, sys.getallocatedblocks(), _resident_bytes()
        if self._base is None:
            self._base = now
        inputs, blocks, size = (a - b for a, b in zip(now, self._base, strict=True))
        growth = f"{blocks:+d} blocks, {size / 2**20:+.1f} MiB over {inputs} inputs"
        if blocks > MAX_BLOCKS and blocks > MAX_BLOCKS_PER_INPUT * inputs:
            raise RuleBrokenError(f"memory grows: {growth}")
        if size > MAX_GROWTH_BYTES:
            raise RuleBrokenError(f"memory grows: {growth}")
        return growth


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def reproduce(name: str, data: bytes) -> int:
    """Feed one input; what it breaks is raised."""
    target = load(name)
    Watch(target).run(data)
    target.close()
    print(f"{name}: {len(data)} bytes break nothing")
    return 0


def without_noise(text: str) -> str:
    """What atheris prints beside an error, taken away."""
    noise = re.compile(r"^(INFO|#\d|NEW_FUNC|==\d+== ERROR|MS: |Base64: |0x|artifact_prefix)")
    return "\n".join(line for line in text.splitlines() if not noise.match(line))


def fixed_inputs(target: Target) -> Iterator[bytes]:
    """The same ones on each machine: the seeds, and mutations of them."""
    mutator = Mutator(target.seeds(), target.words(), target.max_bytes, FIXED_SEED)
    return chain(target.seeds(), (mutator.next() for _ in range(target.fixed_mutations)))


def _feed_fixed(name: str, limit_s: float, file: Path) -> None:
    """Feed the fixed inputs; on a slow machine, as many of them as the time allows."""
    target = load(name)
    total = len(target.seeds()) + target.fixed_mutations
    watch = Watch(target, lambda inputs: inputs > total / 3, InputFile(file, 1 << 20))
    begun = time.monotonic()
    for data in fixed_inputs(target):
        watch.run(data)
        if time.monotonic() - begun > limit_s:
            break
    if watch.inputs < total:
        print(f"left out: {total - watch.inputs} of {total} inputs")
    _report(watch, begun)
    target.close()


def _mutate(name: str, duration_s: float, seed: int, file: Path) -> None:
    target = load(name)
    begun = time.monotonic()
    watch = Watch(target, _after(duration_s / 3), InputFile(file, 1 << 20))
    seeds = target.seeds()
    mutator = Mutator(seeds, target.words(), target.max_bytes, seed)
    for data in seeds:
        watch.run(data)
    while time.monotonic() - begun < duration_s:
        watch.run(mutator.next())
    _report(watch, begun)
    target.close()


def _after(duration_s: float) -> Callable[[int], bool]:
    moment = time.monotonic() + duration_s
    return lambda _inputs: time.monotonic() >= moment


def _report(watch: Watch, begun: float) -> None:
    print(f"memory: {watch.check_memory()}")
    print(f"digest: {watch.digest}")
    took_s = time.monotonic() - begun
    print(f"Done {watch.inputs} runs in {took_s:.0f} second(s)", flush=True)


def _guide(name: str, duration_s: float, seed: int, file: Path, covered: Path) -> None:
    """By atheris: it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["synap_realtime"]):
        target = load(name)
    watch = Watch(target, _after(duration_s / 3), InputFile(file, 1 << 20))
    begun = time.monotonic()

    def test_one_input(data: bytes) -> None:
        watch.run(data)
        if time.monotonic() - begun > duration_s:
            _report(watch, begun)
            os._exit(0)

    longest = max([target.max_bytes, *map(len, target.seeds())])
    atheris.Setup(
        [
            name, f"-max_len={longest}", f"-dict={target.dictionary}",
            f"-seed={seed % 2**31 or 1}", "-timeout=60", "-rss_limit_mb=2048",
            f"-artifact_prefix={file}.", "-verbosity=0", str(covered), str(CORPUS / name),
        ],
        test_one_input,
    )  # fmt: skip
    atheris.Fuzz()


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:  # macOS has no /proc: the peak stands in for it
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    name, driver, duration, seed, file, covered = sys.argv[1:]
    if driver == "fixed":
        _feed_fixed(name, float(duration), Path(file))
    elif driver == "atheris":
        _guide(name, float(duration), int(seed), Path(file), Path(covered))
    else:
        _mutate(name, float(duration), int(seed), Path(file))
