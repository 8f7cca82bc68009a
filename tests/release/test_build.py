"""What ``scripts/build`` makes: complete, reproducible, and without stray files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from release.build import build, build_chart, build_package
from release.project import ROOT, ReleaseError, other_versions, version
from tests.deploy.chart import VALUES
from tests.deploy.go_tools import run_go_tool

PACKAGE = ROOT / "synap_realtime"


def test_builds_each_artifact_once(artifacts: Path) -> None:
    present = version()
    assert {path.name for path in artifacts.iterdir()} == {
        "SHA256SUMS",
        f"synap-realtime-{present}.cdx.json",
        f"synap-realtime-{present}.tgz",
        f"synap-realtime-chart-{present}.tgz",
        f"synap_realtime-{present}-py3-none-any.whl",
        f"synap_realtime-{present}.tar.gz",
    }


def test_checksums_cover_every_other_file(artifacts: Path) -> None:
    lines = (artifacts / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    others = [path for path in artifacts.iterdir() if path.name != "SHA256SUMS"]
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in others}


def test_a_second_build_is_the_same_byte_for_byte(artifacts: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    build_package(again, tmp_path / "unpacked")
    build_chart(again)
    for path in again.iterdir():
        assert path.read_bytes() == (artifacts / path.name).read_bytes(), path.name


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--", PACKAGE], capture_output=True, text=True, check=True
    ).stdout.split()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in names if ".dist-info/" not in name} == set(tracked)
    assert "synap_realtime/py.typed" in names


def test_the_sdist_has_what_an_installer_needs(artifacts: Path) -> None:
    (sdist,) = artifacts.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(name).parts[1:2]).as_posix() for name in archive.getnames()}
    assert names == {
        ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "PROTOCOL.md", "README.md",
        "pyproject.toml", "synap_realtime",
    }  # fmt: skip


def test_the_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    classifiers = metadata.get_all("Classifier") or []
    for minor in range(11, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    assert "Typing :: Typed" in classifiers
    labels = {url.split(",")[0] for url in metadata.get_all("Project-URL") or []}
    assert labels >= {"Homepage", "Documentation", "Changelog", "Source", "Issues"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_description_has_no_link_that_only_a_clone_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("dist-info/METADATA")]
        text = archive.read(name).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_versions_are_the_same_everywhere() -> None:
    assert other_versions() == dict.fromkeys(other_versions(), version())


def test_the_chart_is_one_that_helm_reads(artifacts: Path) -> None:
    (chart,) = artifacts.glob("*chart*.tgz")
    said = run_go_tool("helm", "template", "rooms", chart, "-f", VALUES[0])
    assert said.returncode == 0, said.stderr
    assert "kind: Deployment" in said.stdout


def test_the_sbom_lists_what_the_image_installs(artifacts: Path) -> None:
    (sbom,) = artifacts.glob("*.cdx.json")
    listed = {part["name"]: part["version"] for part in json.loads(sbom.read_text())["components"]}
    pinned = re.findall(
        r"^([a-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements" / "server.txt").read_text(), re.M
    )
    assert listed == dict(pinned)


def test_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "old.whl").touch()
    with pytest.raises(ReleaseError, match=r"not empty; remove it, or name another folder"):
        build(tmp_path)
