"""The page at ``/admin``: one HTML document without external resources."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from ...messages import Response


@cache
def render_page() -> Response:
    """Return the page with its style and script inline, and a policy that allows only these two."""
    folder = files(__package__)
    html = folder.joinpath("admin.html").read_text("utf-8")
    hashes = {}
    for kind, name in (("style", "admin.css"), ("script", "admin.js")):
        text = folder.joinpath(name).read_text("utf-8")
        hashes[kind] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        html = html.replace(f"/* {name} */", text)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"connect-src 'self'; img-src data:; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(200, html.encode(), headers, content_type="text/html; charset=utf-8")
