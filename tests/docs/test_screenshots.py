"""The pictures of the demo: a script takes them, and the README opens with the moving one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.timeouts import TIMEOUT_S
from website.pages import ROOT, sources
from website.screenshots import FOLDER, MOVING, STILLS, take

README = (ROOT / "README.md").read_text()
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_readme_opens_with_the_moving_page() -> None:
    picture = PICTURE.search(README.partition("\n## ")[0].partition("```")[0])
    assert picture is not None
    assert len(picture[1]) > 50  # a description for those who do not see it
    path = ROOT / picture[2]
    assert path == FOLDER / MOVING
    assert path.stat().st_size < 500_000
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) > 10


@pytest.mark.parametrize("file", sources())
def test_pictures_of_a_page_exist_and_are_described(file: str) -> None:
    for description, path in PICTURE.findall((ROOT / file).read_text()):
        assert description
        assert ((ROOT / file).parent / path).is_file(), path


def test_package_index_shows_the_picture() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatch_fancy_pypi_readme"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    repository = "https://github.com/synap-realtime/synap-realtime"
    assert f"]({repository}/raw/main/docs/images/{MOVING})" in done.stdout
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", done.stdout) == []


@pytest.mark.browser
@pytest.mark.timeout(10 * TIMEOUT_S)
def test_takes_pictures(tmp_path: Path) -> None:
    take(tmp_path, end=lambda page: True, wait=lambda page: None)
    assert {path.name for path in tmp_path.iterdir()} == {MOVING, *STILLS.values()}
    with Image.open(tmp_path / MOVING) as image:
        assert image.size == (880, 500)
