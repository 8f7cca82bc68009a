"""The page that explains a finding, by the subject of its check."""

from __future__ import annotations

from ..documentation import Topic

PAGES = {
    "API key": Topic.CREDENTIALS,
    "JWKS": Topic.KEYS,
    "WebSocket": Topic.NO_CONNECTION,
    "clock": Topic.CLOCKS,
    "configuration": Topic.NO_START,
    "disk space": Topic.STORES,
    "environment": Topic.OPTIONS,
    "event stream": Topic.NO_CONNECTION,
    "host": Topic.KEYS,
    "key file": Topic.KEYS,
    "keys": Topic.KEYS,
    "memory": Topic.SCALE_OUT,
    "network": Topic.NO_PUBLISH,
    "open files": Topic.LIMITS,
    "origins": Topic.PERMISSIONS,
    "packages": Topic.INSTALLATION,
    "persistence": Topic.SCALE_OUT,
    "public URL": Topic.NO_CONNECTION,
    "publish": Topic.NO_PUBLISH,
    "ready": Topic.NOT_READY,
    "replicas": Topic.SCALE_OUT,
    "store": Topic.STORES,
    "store clock": Topic.SCALE_OUT,
    "token secret": Topic.CREDENTIALS,
}


def page_for(check: str) -> str:
    """Return the address of the page about a check that warns or fails."""
    return PAGES.get(check, Topic.TROUBLESHOOTING).url
