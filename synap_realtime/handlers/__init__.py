"""The five jobs of the mission, on any framework. ``ports.py`` declares their dependencies."""

from __future__ import annotations

from .conversation_message import handle_conversation_message
from .note_creation import handle_note_creation
from .ports import Entities, Entity, Message, Messages, Responder, Services, Storage, TaskDetails
from .project_creation import handle_project_creation
from .task_completion import handle_task_completion
from .task_creation import handle_task_creation

__all__ = [
    "Entities",
    "Entity",
    "Message",
    "Messages",
    "Responder",
    "Services",
    "Storage",
    "TaskDetails",
    "handle_conversation_message",
    "handle_note_creation",
    "handle_project_creation",
    "handle_task_completion",
    "handle_task_creation",
]
