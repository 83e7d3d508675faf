"""For load balancers and people who wait: /healthz and /readyz, without credentials."""

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from portal import readiness


@login_not_required
@require_safe
@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """200 as long as this process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


@login_not_required
@require_safe
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when everything that work needs answers, else 503; `checks` says what of each part, `reasons` only what is missing."""
    found = readiness.look(timezone.now())
    reasons = [sentence for sentence in found.values() if sentence]
    body = {
        "status": "not ready" if reasons else "ready",
        "checks": {name: sentence or "ok" for name, sentence in found.items()},
        "reasons": reasons,
    }
    return JsonResponse(body, status=503 if reasons else 200)
