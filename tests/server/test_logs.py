"""What the server writes, as an operator's programs read it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("synap-realtime"))


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    """The server's own lines, and those that come with a traceback."""
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--log-format", "json"],
        env={k: v for k, v in os.environ.items() if not k.startswith("SYNAP_REALTIME_")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if "listening on" in lines[-1]["message"]:
                process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert lines[0]["message"].startswith("memory store")
    assert lines[-1]["message"] == "stopped"
    for entry in lines:
        assert entry["level"] == "INFO"
        assert entry["logger"] == "synap_realtime.server.serve"
        assert datetime.fromisoformat(entry["timestamp"]).tzinfo is not None


def test_a_traceback_stays_on_its_line() -> None:
    code = (
        "import logging; from synap_realtime.server.logs import configure;"
        "configure('info', 'json');"
        "logging.getLogger('x').error('%s\\n%s', 'é', 'two', exc_info=ValueError('why'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    (line,) = done.stderr.decode().splitlines()
    entry = json.loads(line)
    assert entry["message"] == "é\ntwo"
    assert "ValueError: why" in entry["exc_info"]


def test_another_format_is_one_line_that_says_what_to_do() -> None:
    done = subprocess.run(
        [COMMAND, "serve", "--log-format", "xml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--log-format (SYNAP_REALTIME_LOG_FORMAT)" in done.stderr
    assert "Traceback" not in done.stderr
