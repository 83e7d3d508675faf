"""What stands before the views: everything for people's pages, and next to nothing for the many calls of agents."""

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.sessions.middleware import SessionMiddleware
from django.test import AsyncClient, Client

pytestmark = pytest.mark.django_db

DOORS = [
    pytest.param(lambda path: Client().get(path), id="wsgi"),
    pytest.param(lambda path: async_to_sync(AsyncClient().get)(path), id="asgi"),
]


@pytest.mark.parametrize("get", DOORS)
def test_agents_pass_by_what_stands_before_peoples_pages(get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(SessionMiddleware, "process_request", lambda self, request: seen.append(request.path) or 1 / 0)
    for path in ("/agent/v1/bundles/abc/", "/agent/v1/orders/"):
        answer = get(path)
        assert answer.status_code == 401 and answer["Content-Type"] == "application/problem+json"
    assert seen == []
    with pytest.raises(ZeroDivisionError):
        get("/login/")


@pytest.mark.parametrize("get", DOORS)
def test_an_agents_address_that_is_none_is_told_so(get: Any) -> None:
    assert get("/agent/v1/nothing/").status_code == 404
    assert get("/agent/v1/bundles/a%00b/").status_code == 400
    assert get("/agent/v1/report/").status_code == 405
