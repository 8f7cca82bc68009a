"""Settings and versions that the Worker shares with the Python server are equal in both."""

from __future__ import annotations

import json
import re

import synap_realtime
from synap_realtime.server.http.openapi import document
from tests.support.workerd import WORKER

MAKE_ANEW = (
    "python -c 'import json; from synap_realtime.server.http.openapi import document; "
    "print(json.dumps(document(), indent=1, ensure_ascii=False))' > worker/src/openapi.json"
)


def test_the_version() -> None:
    assert f'"{synap_realtime.__version__}"' in (WORKER / "src/version.ts").read_text()


def test_the_openapi_document() -> None:
    found = json.loads((WORKER / "src/openapi.json").read_text())
    assert found == json.loads(json.dumps(document())), f"make it anew: {MAKE_ANEW}"


def test_the_lock_names_no_address() -> None:
    lock = json.loads((WORKER / "package-lock.json").read_text())
    assert not [name for name, each in lock["packages"].items() if "resolved" in each]
    assert all("integrity" in each for name, each in lock["packages"].items() if name)


def test_workerd_gets_every_setting() -> None:
    """A setting that workerd.capnp forgets could not be set there."""
    names = set(re.findall(r'"([A-Z][A-Z_]+)"', (WORKER / "src/settings.ts").read_text()))
    given = set(re.findall(r'fromEnvironment = "(\w+)"', (WORKER / "workerd.capnp").read_text()))
    assert given == names


def test_both_configurations_run_the_same() -> None:
    wrangler = (WORKER / "wrangler.jsonc").read_text()
    capnp = (WORKER / "workerd.capnp").read_text()
    (date,) = re.findall(r'"compatibility_date": "(\S+)"', wrangler)
    assert f'compatibilityDate = "{date}"' in capnp
    (flags,) = re.findall(r'"compatibility_flags": (\[.*?\])', wrangler)
    assert f"compatibilityFlags = {flags}" in capnp
