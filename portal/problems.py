"""Errors of the API as problem+json (RFC 9457) with a stable `code` and `reasons`."""

from typing import Any

from rest_framework.response import Response


def handle(exception: Exception, context: dict[str, Any]) -> Response | None:
    raise NotImplementedError
