"""No link that a page offers to a person leads to a refusal."""

import re
from collections import deque
from html import unescape
from urllib.parse import urljoin

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deployments.models import Release
from portal import properties
from portal.models import Environment
from runtimes.models import FailoverGroup

LINK = re.compile(r'\b(?:href|hx-get|action)="([^"#]+)[^"]*"')
FORM = re.compile(r'<form\b[^>]*\bmethod="post"[^>]*>')
NOT_READ = ("/static/", "/admin/", "/api/", "/accounts/", "/help/", "mailto:", "http")
PAGES = 220


def offered(html: str) -> list[str]:
    """What a person may follow by reading: forms that post are acts, and are not followed."""
    return [unescape(found) for found in LINK.findall(FORM.sub("", html))]


@pytest.mark.parametrize(
    "person", ["viewer", "developer", pytest.param("operator", marks=pytest.mark.long), pytest.param("admin", marks=pytest.mark.long)]
)
def test_no_link_leads_to_a_refusal(
    request: pytest.FixtureRequest,
    client: Client,
    developer: User,
    filled: Environment,
    group: FailoverGroup,
    release: Release,
    person: str,
) -> None:
    properties.set_value(filled, "erp.password", "hunter2", secret=True, by=developer)
    client.force_login(request.getfixturevalue(person))
    seen, refused = set(), []
    queue = deque([("the start", "/")])
    while queue and len(seen) < PAGES:
        source, address = queue.popleft()
        shape = re.sub(r"\d+|q=[^&]*|key=[^&]*|machine=[^&]*|connector=[^&]*|next=[^&]*|page=[^&]*", "", address)
        if shape in seen or address.startswith(NOT_READ):
            continue
        seen.add(shape)
        answer = client.get(address)
        if answer.status_code in (403, 404, 405, 500):
            refused.append(f"{answer.status_code} {address}, offered on {source}")
        if answer.status_code == 302:
            queue.append((source, answer["Location"]))
        if answer.status_code == 200 and "text/html" in answer["Content-Type"]:
            queue.extend((address, urljoin(address, link)) for link in offered(answer.content.decode()))
    assert not refused, "\n".join(refused)
    assert len(seen) > 40
