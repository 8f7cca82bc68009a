"""The web app: it responds immediately with ``pending``, and a job does the work."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi
import inngest
import inngest.fast_api
from fastapi import Header, HTTPException
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from ..broadcast import BackgroundBroadcaster
from ..errors import InvalidArgumentError
from ..handlers import Services
from ..integrations.inngest import create_functions, enqueue
from ..jobs import JobType, job_types
from ..loopback import LocalOnly
from .backend import Backend
from .config import Config
from .reports import REPORT_CREATION, create_report_function
from .storage import TroubledStorage

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
"""The build of ``browser/demo`` (``npm run demo`` in ``browser/``), committed so that the app runs
without Node.
"""

# A real app takes the user from its session. Here the browser names the user, so the app must serve
# only this machine and its own page (see LocalOnly below).
Accepted = dict[str, Any]  # the body of a 202 response
User = Annotated[str, Header(alias="X-User-Id", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class NewNote(BaseModel):
    content: str = ""
    title: str | None = None


class NewTask(BaseModel):
    title: str = ""
    description: str | None = None
    priority: str | None = None
    due_date: str | None = None
    project_id: str | None = None


class NewProject(BaseModel):
    title: str = ""
    description: str | None = None
    start_date: str | None = None
    end_date: str | None = None


class NewMessage(BaseModel):
    content: str = ""


class NewReport(BaseModel):
    title: str = Field(min_length=1, max_length=200)
    trouble: bool = False


def create_app(config: Config, backend: Backend) -> fastapi.FastAPI:
    """Create the app.

    Args:
        backend: an open one. It must stay open as long as the app runs.
    """
    services = Services(
        entities=backend.entities,
        messages=backend.messages,
        storage=TroubledStorage(backend.files),
        responder=backend.responder,
    )
    broadcaster = BackgroundBroadcaster(config.realtime_url)
    client = inngest.Inngest(
        app_id="notes_app",
        is_production=False,
        api_base_url=config.inngest_url,
        event_api_base_url=config.inngest_url,
        logger=logging.getLogger("notes_app.inngest"),
    )

    @asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncGenerator[None]:
        yield
        await broadcaster.aclose()

    app = fastapi.FastAPI(title="notes_app", lifespan=lifespan)

    async def request(job: JobType, user_id: str, data: dict[str, Any]) -> Accepted:
        """Enqueue a job; the response names the request, whose room shows its progress."""
        try:
            return await enqueue(
                client, job.trigger_event, data, user_id=user_id, url=config.realtime_url
            )
        except InvalidArgumentError as error:
            raise HTTPException(400, str(error)) from error
        except Exception as error:
            logger.exception("enqueueing the job failed")
            raise HTTPException(503, "The job could not be started. Please try again.") from error

    @app.post("/api/notes", status_code=202)
    async def create_note(note: NewNote, x_user_id: User = "demo") -> Accepted:
        return await request(job_types.NOTE_CREATION, x_user_id, note.model_dump())

    @app.post("/api/tasks", status_code=202)
    async def create_task(task: NewTask, x_user_id: User = "demo") -> Accepted:
        data = {
            "title": task.title,
            "description": task.description,
            "priority": task.priority,
            "dueDate": task.due_date,
            "projectId": task.project_id,
        }
        return await request(job_types.TASK_CREATION, x_user_id, data)

    @app.post("/api/tasks/{id}/complete", status_code=202)
    async def complete_task(id: str, x_user_id: User = "demo") -> Accepted:
        return await request(job_types.TASK_COMPLETION, x_user_id, {"entityId": id})

    @app.post("/api/projects", status_code=202)
    async def create_project(project: NewProject, x_user_id: User = "demo") -> Accepted:
        data = {
            "title": project.title,
            "description": project.description,
            "startDate": project.start_date,
            "endDate": project.end_date,
        }
        return await request(job_types.PROJECT_CREATION, x_user_id, data)

    @app.post("/api/conversations/{id}/messages", status_code=202)
    async def send_message(id: str, message: NewMessage, x_user_id: User = "demo") -> Accepted:
        data = {"conversationId": id, "content": message.content}
        return await request(job_types.CONVERSATION_MESSAGE, x_user_id, data)

    @app.post("/api/reports", status_code=202)
    async def create_report(report: NewReport, x_user_id: User = "demo") -> Accepted:
        return await request(REPORT_CREATION, x_user_id, report.model_dump())

    @app.get("/api/config")
    async def get_config() -> dict[str, str]:
        return {"realtimeUrl": config.realtime_url}

    @app.get("/files/{path:path}")
    async def get_file(path: str) -> Response:
        content = await backend.files.get(path)
        if content is None:
            raise HTTPException(404, "File not found.")
        headers = {"X-Content-Type-Options": "nosniff"}
        return Response(content, media_type="text/plain; charset=utf-8", headers=headers)

    @app.get("/")
    async def get_page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))

    functions = [
        *create_functions(client, services, broadcaster),
        create_report_function(client, backend.files, broadcaster),
    ]
    inngest.fast_api.serve(app, client, functions)
    # Added last, so that it runs first: pages of other sites can send requests to 127.0.0.1.
    app.add_middleware(LocalOnly, name="notes_app", pages=("/",))
    return app
