"""What people see when an error was nobody's intention."""

import sys

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from portal.database import away


@login_not_required
def server_error(request: HttpRequest) -> HttpResponse:
    """500, or 503 with the reason when it is the database's. Neither a session nor the database is asked for anything."""
    refusal = away(sys.exc_info()[1])
    if refusal is None:
        return HttpResponse(render_to_string("500.html"), status=500)
    if getattr(request, "htmx", False):
        answer = HttpResponse(render_to_string("components/_refusal.html", {"refusal": refusal}))
        answer["HX-Reswap"] = "none"  # the alert comes out of band, the rest of the page stays
        return answer
    return HttpResponse(render_to_string("503.html", {"refusal": refusal}), status=refusal.status, headers={"Retry-After": "5"})
