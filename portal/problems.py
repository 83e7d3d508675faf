"""Errors of the API as problem+json (RFC 9457): {type, title, status, detail, code, reasons, errors?}.

`code` is stable and for programs; `detail` and `reasons` are sentences for people; `errors` maps a field to what is wrong with it.
"""

import logging
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.http import Http404
from rest_framework import exceptions
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response
from rest_framework.views import set_rollback

from portal.database import away
from portal.errors import NotAllowed

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"


def body(
    status: int, code: str, detail: str, *, reasons: list[str] | None = None, errors: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """The members of one problem document."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "reasons": reasons or [],
    }
    if errors:
        document["errors"] = errors
    return document


def _flat(detail: Any, path: str = "") -> dict[str, list[str]]:
    """DRF's nested validation detail as {"members.0.name": ["sentence"]}."""
    if isinstance(detail, dict):
        found: dict[str, list[str]] = {}
        for name, inner in detail.items():
            found |= _flat(inner, f"{path}.{name}" if path else str(name))
        return found
    if isinstance(detail, list) and any(isinstance(item, dict | list) for item in detail):
        return {key: value for index, item in enumerate(detail) for key, value in _flat(item, f"{path}.{index}").items()}
    return {path or "body": [str(item) for item in (detail if isinstance(detail, list) else [detail])]}


def handle(exception: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler; None leaves an unforeseen error to Django (500)."""
    headers: dict[str, str] = {}
    match exception:
        case NotAllowed():
            errors = {name: [sentence] for name, sentence in exception.faults.items()}
            document = body(exception.status, exception.code, exception.sentence, reasons=exception.reasons, errors=errors)
        case Http404():
            document = body(404, "not-found", str(exception) if exception.args and exception.args[0] else "There is no such thing.")
        case PermissionDenied():
            document = body(403, "forbidden", str(exception) or "Your role does not include this.")
        case RequestDataTooBig():
            document = body(413, "too-large", "The body is larger than this endpoint takes.")
        case exceptions.ValidationError():
            errors = _flat(exception.detail)
            sentences = [f"{field}: {sentence}" for field, found in errors.items() for sentence in found]
            document = body(400, "invalid", "; ".join(sentences), reasons=sentences, errors=errors)
        case exceptions.APIException():
            code = exception.get_codes()
            document = body(exception.status_code, str(code).replace("_", "-"), str(exception.detail))
            if challenge := getattr(exception, "auth_header", None):
                headers["WWW-Authenticate"] = challenge
            if wait := getattr(exception, "wait", None):
                headers["Retry-After"] = str(int(wait))
        case OverflowError():  # what the database refuses, or the calendar: the year 1 in another zone
            logger.exception("A value of a request is out of range.")
            document = body(400, "invalid", "A number or a moment of this request is out of range.")
        case _ if refusal := away(exception):
            document = body(refusal.status, refusal.code, refusal.sentence)
        case _:
            return None
    set_rollback()
    if request := context.get("request"):  # a view with other renderers (the schema's YAML) says no in JSON as well
        request.accepted_renderer, request.accepted_media_type = JSONRenderer(), JSONRenderer.media_type
    return Response(document, status=document["status"], headers=headers, content_type=CONTENT_TYPE)
