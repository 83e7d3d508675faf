"""How bodies of the API are read: never more of one than its limit, whatever its sender says of its length."""

import io
from collections.abc import Mapping
from typing import IO, Any

from django.core.exceptions import RequestDataTooBig
from rest_framework import exceptions, parsers

MOST_BYTES = 8 * 1024 * 1024  # a project file of 5 MB within JSON


def bounded(stream: IO[Any], parser_context: Mapping[str, Any] | None, most: int) -> io.BytesIO:
    """The body. Raises RequestDataTooBig (413) for a longer one, of which little more than `most` bytes are read."""
    refuse_long(parser_context, most)
    body = stream.read(most + 1)
    if len(body) > most:
        raise RequestDataTooBig
    return io.BytesIO(body)


def refuse_long(parser_context: Mapping[str, Any] | None, most: int) -> None:
    """Raises RequestDataTooBig when the sender himself says that it is too long."""
    request = (parser_context or {}).get("request")
    length = str(request.META.get("CONTENT_LENGTH") or "") if request is not None else ""
    if length.isdecimal() and int(length[:20]) > most:
        raise RequestDataTooBig


class JSONParser(parsers.JSONParser):
    """DRF's, which lets Python's recursion limit through as an error of the server, and reads a body of any length."""

    most = MOST_BYTES

    def parse(self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        try:
            return super().parse(bounded(stream, parser_context, self.most), media_type=media_type, parser_context=parser_context)
        except RecursionError:
            raise exceptions.ParseError("JSON parse error - nested too deeply") from None


class FormParser(parsers.FormParser):
    most = MOST_BYTES

    def parse(self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        return super().parse(bounded(stream, parser_context, self.most), media_type=media_type, parser_context=parser_context)


class MultiPartParser(parsers.MultiPartParser):
    """Django's, which keeps files on the disk and limits the fields; it reads as much as the sender announced."""

    most = MOST_BYTES

    def parse(self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        refuse_long(parser_context, self.most)
        return super().parse(stream, media_type=media_type, parser_context=parser_context)
