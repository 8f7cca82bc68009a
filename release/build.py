"""Build the artifacts of a release: ``scripts/build [FOLDER]``.

- an sdist, and a wheel that is built from it, as an installer would
- the npm package of ``browser/``
- the Helm chart
- an SBOM of what the container image has (CycloneDX, from ``requirements/server.txt``)
- ``SHA256SUMS``

Built twice from the same commit, each file is the same, byte for byte.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from .project import CHART, ROOT, ReleaseError, source_date, version

_BIN = Path(sys.executable).parent


def build(folder: Path) -> list[Path]:
    """Build everything into an empty or new folder.

    Returns:
        The files, sorted by name; the last one has the checksums of the others.

    Raises:
        ReleaseError: the folder has files in it, or a step failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ReleaseError(f"{folder}: not empty; remove it, or name another folder")
    with tempfile.TemporaryDirectory() as unpacked:
        build_package(folder, Path(unpacked))
    _run(_BIN / "npm", "pack", "--silent", "--pack-destination", folder, cwd=ROOT / "browser")
    build_chart(folder)
    build_sbom(folder)
    check_package(folder)
    return [*sorted(folder.iterdir()), write_checksums(folder)]


def build_package(folder: Path, unpacked: Path) -> None:
    """Build the sdist, and the wheel from the unpacked sdist."""
    _run(_BIN / "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    _run(_BIN / "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)


def check_package(folder: Path) -> None:
    """Check what the package index would reject, and files that do not belong into a wheel."""
    packages = [*folder.glob("synap_realtime-*.tar.gz"), *folder.glob("*.whl")]
    _run(_BIN / "twine", "check", "--strict", *packages, cwd=ROOT)
    _run(_BIN / "check-wheel-contents", *folder.glob("*.whl"), cwd=ROOT)


def build_chart(folder: Path) -> None:
    """Archive the chart as ``helm package`` does, but with the date of the source."""
    ignored = [".helmignore", *(CHART / ".helmignore").read_text().split()]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in sorted(CHART.rglob("*")):
            name = path.relative_to(CHART)
            if path.is_dir() or any(fnmatch(part, each) for part in name.parts for each in ignored):
                continue
            member = tarfile.TarInfo(f"{CHART.name}/{name.as_posix()}")
            member.size, member.mtime = path.stat().st_size, source_date()
            with path.open("rb") as content:
                tar.addfile(member, content)
    compressed = gzip.compress(archive.getvalue(), mtime=source_date())
    # The name that helm would choose is that of the npm package.
    (folder / f"{CHART.name}-chart-{version()}.tgz").write_bytes(compressed)


def build_sbom(folder: Path) -> None:
    """List what the container image has beside Python."""
    _run(
        _BIN / "cyclonedx-py", "requirements", ROOT / "requirements" / "server.txt",
        "--pyproject", ROOT / "pyproject.toml", "--mc-type", "application",
        "--output-reproducible", "--output-format", "JSON",
        "--output-file", folder / f"synap-realtime-{version()}.cdx.json",
        cwd=ROOT,
    )  # fmt: skip


def write_checksums(folder: Path) -> Path:
    """Write the SHA-256 of each file, in the format of ``sha256sum --check``."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(lines))
    return sums


def _run(program: Path, *arguments: str | Path, cwd: Path) -> None:
    """Run one step; its output is shown only if it fails."""
    environment = {
        **os.environ,
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        "SOURCE_DATE_EPOCH": str(source_date()),
    }
    done = subprocess.run(
        [program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ReleaseError(f"{program.name} {arguments[0]}: {done.stdout}{done.stderr}".rstrip())


def main() -> None:
    """Build into the folder of the command line, by default ``dist``."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    try:
        files = build(folder.resolve())
    except ReleaseError as error:
        sys.exit(f"scripts/build: {error}")
    for path in files:
        print(f"{path.stat().st_size:>10,}  {path.name}")


if __name__ == "__main__":
    main()
