"""The route that revokes tokens and users. See PROTOCOL.md, "Revoking"."""

from __future__ import annotations

import re
from typing import Literal

from ..auth.authorization import AccessControl, require_scope
from ..auth.revocations import Revocation, Revocations, TooManyRevocationsError
from ..auth.tokens import MAX_TEXT, MAX_TOKEN_BYTES, MalformedTokenError
from ..errors import UnavailableError
from ..logging import events
from ..messages import (
    Request,
    Response,
    bad_request,
    decode_json,
    json_response,
    read_json_body,
)
from ..surveys import Answer, Surveys
from .in_flight import InFlight

_QUESTION = "revoke"

_Revocable = Literal["user", "token", "jti"]

_NAMES = {"user", "token", "jti"}
MAX_GIVEN = MAX_TOKEN_BYTES + 100

_DECORATED = re.compile(
    r"""\s*["']?\s*(?:authorization\s*:\s*)?(?:bearer[\s.]\s*)?["']?([\w.=-]+)["']?\s*["']?\s*""",
    re.ASCII | re.IGNORECASE,
)


class RevokeService:
    """Handles the route ``/revoke``."""

    def __init__(
        self,
        access: AccessControl,
        revocations: Revocations,
        in_flight: InFlight,
        surveys: Surveys,
    ) -> None:
        self._access = access
        self._revocations = revocations
        self._in_flight = in_flight
        self._surveys = surveys
        surveys.register(_QUESTION, self._enforce)

    async def revoke(self, request: Request) -> Response:
        """Handle ``POST /revoke``."""
        self._in_flight.ensure_accepting()
        claims = await self._access.authenticate_counted(request)
        require_scope(claims, "admin")
        of, given = _revocation_in(decode_json(await read_json_body(request)))
        if not self._access.keys():  # without keys, tokens are not checked
            return json_response(200, {"success": True, "revoked": False, "closed": 0})
        try:
            with self._in_flight:
                name = await self._name_to_revoke(of, given)
                revocation = await self._revocations.revoke(
                    "user" if of == "user" else "token", name
                )
                # The question carries the revocation, because it may arrive before the log's entry.
                answers = await self._surveys.ask(_QUESTION, revocation.to_json(), _closed_in)
        except TooManyRevocationsError:
            raise UnavailableError(
                "too many revocations are stored; remove the secret from the server's keys, which "
                "revokes all tokens that it has signed"
            ) from None
        closed = sum(answers.all)
        events.log_revoked(claims, of, name, closed)
        return json_response(
            200, {"success": True, "revoked": True, "closed": closed, **answers.marks()}
        )

    def _enforce(self, revocation: Answer) -> Answer:
        return {"closed": self._revocations.enforce(Revocation.from_json(revocation))}

    async def _name_to_revoke(self, of: _Revocable, given: str) -> str:
        """Return the id of the user or the token to revoke.

        Raises:
            RequestError: 400. It does not repeat the given value, which may be a credential.
        """
        if of == "token":
            try:
                id = await self._access.id_of_token(_bare_token(given))
            except MalformedTokenError as error:
                raise bad_request("Nothing was revoked", f"token: {error}") from None
            if id is None:
                raise bad_request(
                    "Nothing was revoked",
                    "token: no key of this server has signed it; was it copied whole?",
                )
            return id
        if self._access.is_credential(given):
            raise bad_request(
                "Nothing was revoked", f'{of}: this is a credential; send a token as {{"token": …}}'
            )
        return given


def _closed_in(answer: Answer) -> int:
    return int(answer["closed"])


def _revocation_in(body: object) -> tuple[_Revocable, str]:
    """Return what the body of ``/revoke`` names: the kind and the value.

    Raises:
        RequestError: 400.
    """
    match body:
        case {"user": str(name), **rest} if 0 < len(name) <= MAX_TEXT and not _NAMES & rest.keys():
            return "user", name
        case {"token": str(name), **rest} if (
            0 < len(name) <= MAX_GIVEN and not _NAMES & rest.keys()
        ):
            return "token", name
        case {"jti": str(name), **rest} if 0 < len(name) <= MAX_TEXT and not _NAMES & rest.keys():
            return "jti", name
    raise bad_request(
        "Nothing was revoked", 'expected one of {"user": id}, {"token": JWT} and {"jti": id}'
    )


def _bare_token(text: str) -> str:
    """Return a token without whitespace, quotes and ``Bearer`` that were copied with it."""
    found = _DECORATED.fullmatch(text.strip())
    return found[1] if found else text
