"""The routes: they answer immediately, and a job does the work."""

from __future__ import annotations

import json
import secrets

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST
from kombu.exceptions import OperationalError

from synap_realtime import mint_token
from synap_realtime.jobs import accepted_response, new_request_id

from . import tasks


def current_user(request: HttpRequest) -> str:
    """Return the id of the user who is signed in.

    Replace this by your own sign-in, such as ``str(request.user.pk)`` in a view with
    ``@login_required``. Here, each browser is a user of its own.
    """
    return str(request.session.setdefault("user", secrets.token_hex(8)))


@require_GET
@ensure_csrf_cookie
def get_page(_: HttpRequest) -> HttpResponse:
    return HttpResponse((settings.BASE_DIR / "static" / "index.html").read_bytes())


@require_GET
def get_config(_: HttpRequest) -> JsonResponse:
    return JsonResponse({"realtimeUrl": settings.REALTIME_PUBLIC_URL})


@require_POST
def create_report(request: HttpRequest) -> JsonResponse:
    try:
        body = json.loads(request.body)
        title, failures = str(body["title"])[:200], int(body.get("failures", 0))
    except (ValueError, TypeError, KeyError, AttributeError):
        title, failures = "", 0
    if not title or not 0 <= failures <= 3:
        return JsonResponse({"detail": "A report needs a title."}, status=422)
    request_id = new_request_id()
    answer = accepted_response(request_id)
    try:
        tasks.create_report.delay(
            title, failures=failures, user_id=current_user(request), request_id=request_id
        )
    except OperationalError:
        detail = "The job could not be started. Please try again."
        return JsonResponse({"detail": detail}, status=503)
    return JsonResponse(answer, status=202)


@require_POST
def create_token(request: HttpRequest) -> JsonResponse:
    """Return a token for the user's room, and for the rooms of requests whose id the page knows."""
    return JsonResponse({"token": mint_token(current_user(request), rooms=["request_*"])})
