"""The web app: it answers immediately, and a job does the work."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import jobs
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from kombu.exceptions import OperationalError
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

from synap_realtime import mint_token
from synap_realtime.jobs import accepted_response, new_request_id

STATIC = Path(__file__).with_name("static")

app = FastAPI(title="Reports")
app.add_middleware(SessionMiddleware, secret_key=os.environ["SESSION_SECRET"])
app.mount("/static", StaticFiles(directory=STATIC))


def current_user(request: Request) -> str:
    """Return the id of the user who is signed in.

    Replace this by your own sign-in. Here, each browser is a user of its own.
    """
    return str(request.session.setdefault("user", secrets.token_hex(8)))


User = Annotated[str, Depends(current_user)]


class NewReport(BaseModel):
    title: str = Field(min_length=1, max_length=200)
    failures: int = Field(default=0, ge=0, le=3)


@app.get("/")
def get_page(_: User) -> FileResponse:
    return FileResponse(STATIC / "index.html")


@app.get("/api/config")
def get_config() -> dict[str, str]:
    return {"realtimeUrl": os.environ["REALTIME_PUBLIC_URL"]}


@app.post("/api/reports", status_code=202)
def create_report(report: NewReport, user: User) -> dict[str, Any]:
    request_id = new_request_id()
    body = accepted_response(request_id)
    try:
        jobs.create_report.delay(
            report.title, failures=report.failures, user_id=user, request_id=request_id
        )
    except OperationalError as error:
        raise HTTPException(503, "The job could not be started. Please try again.") from error
    return body


@app.post("/api/realtime-token")
def create_token(user: User) -> dict[str, str]:
    """Return a token for the user's room, and for the rooms of requests whose id the page knows."""
    return {"token": mint_token(user, rooms=["request_*"])}
