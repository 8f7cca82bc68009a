"""Keep the inputs of an exploration that cover what no kept one does: ``scripts/fuzz --merge``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from .target import CORPUS, kept_file, kept_inputs
from .targets import load

MAX_BYTES = 2048
"""A longer input is not kept: the seeds have the long ones that matter."""


def merge(name: str, found: Path) -> tuple[int, int]:
    """Rewrite the kept inputs of a target.

    Args:
        found: the folder of the inputs that explorations found.

    Returns:
        How many there were, and how many there are.
    """
    seeds = {file.read_bytes() for file in (CORPUS / name).iterdir()}
    before = kept_inputs(name)
    new = {file.read_bytes() for file in found.iterdir()}
    with tempfile.TemporaryDirectory(prefix="synap-fuzz-") as temporary:
        chosen, offered = Path(temporary, "chosen"), Path(temporary, "offered")
        for folder, inputs in ((chosen, seeds), (offered, {*before, *new})):
            folder.mkdir()
            for number, data in enumerate(sorted(inputs)):
                if folder is chosen or len(data) <= MAX_BYTES:
                    (folder / str(number)).write_bytes(data)
        command = [sys.executable, "-m", __spec__.name, name, "-merge=1", "-max_len=100000"]
        subprocess.run([*command, str(chosen), str(offered)], check=True, stderr=subprocess.DEVNULL)
        kept = {file.read_bytes() for file in chosen.iterdir()} - seeds
    lines = [f"{data!r}\n" for data in sorted(kept, key=lambda data: (len(data), data))]
    kept_file(name).write_text("".join(lines))
    return len(before), len(kept)


def _run(name: str, *options: str) -> None:
    """Run libFuzzer, which starts this command again for a part of its work."""
    import atheris

    with atheris.instrument_imports(include=["synap_realtime"]):
        target = load(name)
    command = f"{sys.executable} -m {__spec__.name} {name}"
    atheris.Setup([command, *options], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    _run(*sys.argv[1:])
