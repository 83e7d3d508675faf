"""Static files come the same way through the synchronous and the asynchronous stack."""

import asyncio
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient, Client
from django.utils.module_loading import import_string

FILE = "/static/portal/portal.css"


def over(stack: str, method: str, path: str, **headers: str) -> Any:
    if stack == "wsgi":
        return getattr(Client(), method)(path, headers=headers)
    return async_to_sync(getattr(AsyncClient(), method))(path, headers=headers)


def body(answer: Any) -> bytes:
    return b"".join(answer) if answer.streaming else answer.content


@pytest.mark.parametrize("stack", ["wsgi", "asgi"])
def test_a_file_is_served_with_its_type_and_length(stack: str) -> None:
    answer = over(stack, "get", FILE)
    content = body(answer)
    assert (answer.status_code, answer["Content-Type"].split(";")[0]) == (200, "text/css")
    assert int(answer["Content-Length"]) == len(content) > 0


@pytest.mark.parametrize("stack", ["wsgi", "asgi"])
def test_a_head_tells_the_length_only(stack: str) -> None:
    answer = over(stack, "head", FILE)
    assert body(answer) == b""
    assert int(answer["Content-Length"]) > 0


@pytest.mark.parametrize("stack", ["wsgi", "asgi"])
def test_an_unchanged_file_is_not_sent_again(stack: str) -> None:
    first = over(stack, "get", FILE)
    body(first)
    again = over(stack, "get", FILE, if_modified_since=first["Last-Modified"])
    assert (again.status_code, body(again)) == (304, b"")


@pytest.mark.django_db
@pytest.mark.parametrize("stack", ["wsgi", "asgi"])
@pytest.mark.parametrize("path", ["/static/nothing.css", "/static/../manage.py"])
def test_what_is_no_static_file_is_not_found(stack: str, path: str) -> None:
    assert over(stack, "get", path).status_code in (302, 404)


def test_no_middleware_makes_a_waiting_agent_block_a_thread(settings: Any) -> None:
    assert [name for name in settings.MIDDLEWARE if not getattr(import_string(name), "async_capable", False)] == []
    assert asyncio.iscoroutinefunction(import_string("runtimes.api.agents.orders"))
