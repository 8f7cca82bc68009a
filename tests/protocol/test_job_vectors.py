"""The vectors of the records of jobs, which other implementations check, too."""

from __future__ import annotations

import json

from . import job_vectors


def test_vectors_are_those_of_the_present_rules() -> None:
    stored = json.loads(job_vectors.FILE.read_text())
    made = json.loads(json.dumps(job_vectors.made()))
    assert stored == made, "python -m tests.protocol.job_vectors"
