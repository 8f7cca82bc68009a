"""The configuration of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

APP_PORT = 8000
ROOM_SERVER_PORT = 8787
INNGEST_PORT = 8288


@dataclass(frozen=True, slots=True)
class Config:
    """Where the demo keeps its data, and the addresses of its parts.

    Attributes:
        data: the folder of notes, files and rooms. What it holds is shown again after a restart.
        app_url: the app that serves the page.
        realtime_url: the room server.
        inngest_url: the Inngest server.
    """

    data: Path
    app_url: str = f"http://127.0.0.1:{APP_PORT}"
    realtime_url: str = f"http://127.0.0.1:{ROOM_SERVER_PORT}"
    inngest_url: str = f"http://127.0.0.1:{INNGEST_PORT}"
