"""``synap-realtime init``. The projects themselves are tested in tests/release/test_projects.py."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError, __version__, templates
from synap_realtime.templates import Template, create_project
from tests.support.command_line import COMMAND
from tests.support.timeouts import TIMEOUT_S


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "init", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("template", Template)
def test_writes_a_folder_with_the_name_of_the_template(tmp_path: Path, template: Template) -> None:
    done = run(tmp_path, template.value)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^  (\S+/\S+)$", done.stdout, re.M)
    files = [path for path in (tmp_path / template.value).rglob("*") if path.is_file()]
    assert printed == sorted(str(path.relative_to(tmp_path)) for path in files)
    assert f"cd {template.value}\n" in done.stdout


def test_accepts_an_empty_folder_with_a_space(tmp_path: Path) -> None:
    (tmp_path / "my app").mkdir()
    done = run(tmp_path, "fastapi-celery", "my app")
    assert "cd 'my app'\n" in done.stdout
    assert (tmp_path / "my app" / "app.py").exists()


@pytest.mark.parametrize(
    ("url", "requirement"),
    [
        (None, f">={__version__}"),
        ("file:///my%20dist/synap.whl", " @ file:///my%20dist/synap.whl"),
    ],
)
def test_requires_the_package_from_where_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, requirement: str
) -> None:
    monkeypatch.setattr(templates, "installed_from", lambda: url)
    create_project(Template.FASTAPI_CELERY, tmp_path / "new")
    lines = (tmp_path / "new" / "requirements.txt").read_text().splitlines()
    assert f"synap-realtime[auth,celery,server]{requirement}" in lines
    assert any(line.startswith("#") for line in lines) == (url is not None)


@pytest.mark.parametrize("name", ["README.md", ".git"])
def test_refuses_a_folder_that_is_not_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    done = run(tmp_path, "fastapi-celery", ".")
    assert done.returncode == 2
    assert done.stderr == (
        "synap-realtime: FOLDER: . is not empty; name a folder that does not exist yet\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("file", r"^FOLDER: \S+/file is not a folder; name"),
        ("file/in", r"^FOLDER: cannot write \S+: "),
    ],
)
def test_names_the_folder_that_cannot_be_written(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=problem):
        create_project(Template.FASTAPI_CELERY, tmp_path / name)


def test_lists_the_templates_if_the_name_is_unknown(tmp_path: Path) -> None:
    done = run(tmp_path, "flask")
    assert done.returncode == 2
    for template in Template:
        assert template.value in done.stderr


def test_each_project_has_secrets_of_its_own_that_others_cannot_read(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        create_project(Template.DJANGO_CELERY, tmp_path / name)
        files.append(tmp_path / name / ".env")
    secrets = [set(re.findall(r"=([\w-]{43})$", file.read_text(), re.M)) for file in files]
    assert [len(each) for each in secrets] == [3, 3]
    assert secrets[0].isdisjoint(secrets[1])
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    example = (tmp_path / "one" / ".env.example").read_text()
    assert not any(secret in example for secret in secrets[0])
