"""The proxies of deploy/README.md forward the room server and write no token to a log."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import httpx

from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server
from tests.support.certificates import certify

from .proxy import running_proxy

README = (Path(__file__).parents[2] / "deploy" / "README.md").read_text()
TOKEN = "aTokenInTheQuery"


def snippet(start: str) -> str:
    """Return the only code block of the page that starts with this line."""
    (found,) = re.findall(rf"```\w*\n({re.escape(start)}.*?)```", README, re.DOTALL)
    return str(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


async def check_forwards_and_logs_no_token(url: str, upstream: int, folder: Path) -> None:
    """While the room server runs, and after it has stopped."""
    async with httpx.AsyncClient(verify=False, base_url=url) as client:  # noqa: S501
        async with running_server(create_app(), port=upstream), asyncio.timeout(30):
            while True:
                try:
                    if (await client.get("/ready")).is_success:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)  # the proxy starts
            query = {"token": TOKEN}
            async with client.stream("GET", "/rooms/user_1/events", params=query) as events:
                assert "retry" in await anext(events.aiter_lines())
        assert (await client.get("/rooms/user_1/events", params=query)).status_code == 502
    logs = "".join(file.read_text(errors="replace") for file in folder.glob("*.log"))
    assert "/rooms/user_1/events" in logs
    assert TOKEN not in logs


async def test_nginx_forwards_and_logs_no_token(tmp_path: Path) -> None:
    certified = certify(tmp_path)
    upstream, port = free_port(), free_port()
    server = snippet("log_format")
    for written, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/rooms.pem", certified.chain),
        ("/etc/ssl/rooms.key", certified.key),
        ("/var/log/nginx/", f"{tmp_path}/"),
        ("127.0.0.1:8787", f"127.0.0.1:{upstream}"),
    ):
        assert written in server
        server = server.replace(written, str(here))
    bodies = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/main.log;"
        f"events {{}} http {{ {bodies} {server} }}"
    )
    nginx = ("nginx", "-p", tmp_path, "-e", "stderr", "-c", tmp_path / "nginx.conf")
    with running_proxy(*nginx, log=tmp_path / "output.log"):
        await check_forwards_and_logs_no_token(f"https://127.0.0.1:{port}", upstream, tmp_path)


async def test_caddy_forwards_and_logs_no_token(tmp_path: Path) -> None:
    upstream, port = free_port(), free_port()
    site = snippet("{\n    log")
    for written, here in (
        ("{\n    log", "{\n    admin off\n    auto_https off\n    log"),
        ("rooms.example.com", f"http://127.0.0.1:{port}"),
        ("127.0.0.1:8787", f"127.0.0.1:{upstream}"),
    ):
        assert site.count(written) == 1
        site = site.replace(written, here)
    (tmp_path / "Caddyfile").write_text(site)
    caddy = ("caddy", "run", "--adapter", "caddyfile", "--config", tmp_path / "Caddyfile")
    with running_proxy(*caddy, log=tmp_path / "caddy.log"):
        await check_forwards_and_logs_no_token(f"http://127.0.0.1:{port}", upstream, tmp_path)
