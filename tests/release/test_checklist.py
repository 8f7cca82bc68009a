"""``scripts/release``: each check finds what it is for, and says the fix."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path

import pytest
import yaml

from release import checklist, project

VERSION = project.version()
TODAY = date.today().isoformat()  # noqa: DTZ011 - as in the checks


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with what the checks read, ready for a release."""
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION} - {TODAY}\n\n- First.\n")
    (tmp_path / "UPGRADING.md").write_text("# Upgrading\n\n## To 0.1\n\nNothing.\n")
    for command in (
        ("init", "-q", "-b", "main"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "-m", "All"),
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(checklist, "ROOT", tmp_path)
    return tmp_path


def test_finds_nothing_in_a_tree_that_is_ready(tree: Path) -> None:
    for check in (checklist.check_changelog, checklist.check_upgrading, checklist.check_commit):
        assert list(check()) == []


@pytest.mark.parametrize(
    ("heading", "said"),
    [
        (f"{VERSION}: first release", "the first section has no date"),
        ("Unreleased", "the first section has no date"),
        (f"0.0.9 - {TODAY}", "the first section is of 0.0.9"),
    ],
)
def test_a_changelog_without_a_dated_section_of_the_version(
    tree: Path, heading: str, said: str
) -> None:
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n\n## 0.0.8 - 2026-01-01\n")
    (problem,) = checklist.check_changelog()
    assert said in problem
    assert f"write '## {VERSION} - {TODAY}'" in problem


@pytest.mark.parametrize(
    ("version", "headings", "wanted"),
    [
        ("0.2.0", "## To 0.1", "0.2"),
        ("0.2.1", "## To 0.1", None),
        ("1.0.0", "## To 0.1", "1"),
        ("1.1.0", "## To 0.1", None),
        ("2.0.0-rc.1", "## To 2", None),
    ],
)
def test_a_version_that_may_break_something_has_upgrade_notes(
    tree: Path, monkeypatch: pytest.MonkeyPatch, version: str, headings: str, wanted: str | None
) -> None:
    monkeypatch.setattr(checklist, "version", lambda: version)
    (tree / "UPGRADING.md").write_text(headings)
    problems = list(checklist.check_upgrading())
    assert [f"'## To {wanted}'" in each for each in problems] == ([True] if wanted else [])


def test_uncommitted_changes_another_branch_and_an_existing_tag(tree: Path) -> None:
    subprocess.run(["git", "-C", tree, "tag", f"v{VERSION}"], check=True)
    subprocess.run(["git", "-C", tree, "switch", "-q", "-c", "topic"], check=True)
    (tree / "new").touch()
    changes, branch, tag = checklist.check_commit()
    assert changes == "the working tree has changes: commit or remove them"
    assert branch == "the branch is topic: check out main"
    assert tag == f"the tag v{VERSION} exists: raise the version"


def test_versions_that_differ_and_one_that_is_not_semantic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(checklist.check_versions()) == []
    monkeypatch.setattr(checklist, "version", lambda: "1.0")
    invalid, *others = checklist.check_versions()
    assert "'1.0' is not a semantic version" in invalid
    assert len(others) == len(project.other_versions())


def test_a_problem_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    def check_it() -> checklist.Problems:
        """Check it."""
        yield "it: missing"

    assert not checklist.run((check_it,))
    assert capsys.readouterr().out.split("\n")[:2] == ["missing  Check it.", "         it: missing"]


def test_workflows_are_valid_and_run_scripts_that_exist() -> None:
    workflows = sorted((project.ROOT / ".github" / "workflows").glob("*.yml"))
    assert [each.name for each in workflows] == ["ci.yml", "release.yml"]
    for path in workflows:
        jobs = yaml.safe_load(path.read_text())["jobs"]
        for job in jobs.values():
            assert job["runs-on"]
            for step in job["steps"]:
                assert ("run" in step) != ("uses" in step)
                for word in step.get("run", "").split():
                    if word.startswith(("scripts/", ".ci/")):
                        assert (project.ROOT / word).exists(), word


def test_only_the_job_that_uploads_may_prove_its_identity() -> None:
    path = project.ROOT / ".github" / "workflows" / "release.yml"
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    proving = {
        name for name, job in workflow["jobs"].items() if "id-token" in job.get("permissions", {})
    }
    assert proving == {"python", "npm"}
