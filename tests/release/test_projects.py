"""The projects of ``synap-realtime init``, as a new user has them: from the wheel, and run."""

from __future__ import annotations

import asyncio
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from synap_realtime import follow_job
from synap_realtime.templates import Template
from tests.browser.chromium import launched
from tests.support.polling import until
from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S

from .environments import BIN, Environment

READY = {
    Template.FASTAPI_CELERY: " ready.",
    Template.FASTAPI_INNGEST: '"PUT /api/inngest HTTP/1.1" 200',
    Template.DJANGO_CELERY: " ready.",
}
"""What is logged when jobs can run. An Inngest server drops events for functions that are not
registered yet."""


@dataclass
class Project:
    template: Template
    environment: Environment
    folder: Path


@pytest.fixture(scope="module", params=list(Template))
def project(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project in an environment with what its requirements.txt names."""
    environment = Environment(tmp_path_factory.mktemp("project"))
    environment.install(f"{wheel}[cli]")
    done = environment.run("synap-realtime", "init", request.param, "my app")
    assert done.returncode == 0, done.stderr
    assert "honcho start" in done.stdout
    folder = environment.folder / "my app"
    environment.install("-r", folder / "requirements.txt")
    return Project(request.param, environment, folder)


def test_its_own_tests_pass(project: Project) -> None:
    done = project.environment.run("pytest", "-q", folder=project.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


def test_its_types_are_right(project: Project) -> None:
    python = str(project.environment.bin / "python")
    command = [BIN / "mypy", "--python-executable", python, "--check-untyped-defs"]
    done = subprocess.run(
        [*map(str, command), "--ignore-missing-imports", "--cache-dir", "../mypy", "."],
        cwd=project.folder, env=project.environment.variables(), capture_output=True, text=True,
        timeout=4 * TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_secrets_are_new_and_only_its_owner_reads_them(project: Project) -> None:
    env = project.folder / ".env"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert ".env\n" in (project.folder / ".gitignore").read_text()
    secrets = settings(env)
    examples = settings(project.folder / ".env.example")
    assert secrets.keys() == examples.keys()
    for name in ("REALTIME_API_KEY", "REALTIME_TOKEN_SECRET"):
        assert len(secrets[name]) >= 40
        assert secrets[name] != examples[name]


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    """``honcho start``; yields the address of the web app."""
    env = project.folder / ".env"
    text = env.read_text()
    for port in ("8000", "8288", "8787"):
        text = text.replace(port, str(free_port()))
    env.write_text(text)
    process = project.environment.start("honcho", "start", folder=project.folder)
    try:
        assert process.stdout is not None
        assert any(READY[project.template] in line for line in process.stdout), "it has ended"
        yield f"http://127.0.0.1:{settings(env)['APP_PORT']}"
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=2 * TIMEOUT_S)[0]
        print(said)  # noqa: T201 - pytest shows it if the test fails
        for name in ("rooms", "app"):
            assert f"{name}.1 stopped" in said


async def test_user_sees_a_job_that_is_started_on_the_page(url: str, project: Project) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        await until(lambda: answers(url))
        await client.get("/")
        headers = {"X-CSRFToken": client.cookies.get("csrftoken") or ""}
        token = await client.post("/api/realtime-token", headers=headers)
        assert token.status_code == 200
        body = {"title": "Q3", "failures": 1}
        accepted = await client.post("/api/reports", json=body, headers=headers)
        assert accepted.status_code == 202, accepted.text
        rooms = (await client.get("/api/config")).json()["realtimeUrl"]
    async with asyncio.timeout(2 * TIMEOUT_S):
        job = follow_job(accepted.json()["requestId"], rooms, token=token.json()["token"])
        states = [state async for state in job]
    assert states[-1].status == "success"
    assert states[-1].text.startswith("Q3: all numbers")
    assert "retrying" in {state.status for state in states}
    assert len({state.progress for state in states}) > 10


async def test_page_shows_a_job_until_it_is_done(url: str) -> None:
    await until(lambda: answers(url))
    async with launched() as browser:
        page = await browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(url)
        await page.get_by_label("Title").fill("Q4")
        await page.get_by_role("button", name="Write a report").click()
        job = page.locator("#jobs li")
        await expect(job.get_by_role("status")).to_contain_text("%", timeout=1000 * TIMEOUT_S)
        await page.reload()
        await expect(job.get_by_role("status")).to_have_text("done", timeout=1000 * TIMEOUT_S)
        await expect(job).to_contain_text("Q4: all numbers are up")
        assert problems == []


def settings(env: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in env.read_text().splitlines())
    return {name: value for name, found, value in lines if found and not name.startswith("#")}


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
