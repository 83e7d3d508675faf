"""Deploy › Releases › Compare: any two releases, or a release with what runs."""

from django.http import Http404, HttpResponse
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_GET

from deployments import sides
from deployments.models import Release
from portal.access import get_environment
from portal.htmx import UserRequest, render
from portal.models import Environment

RUNNING = "running"


def compare_address(environment: Environment, before: Release | None, after: Release | None) -> str:
    """Link to a comparison; None is what runs."""
    names = [RUNNING if side is None else str(side.number) for side in (before, after)]
    address = reverse("release-compare", args=[environment.project.slug, environment.kind])
    return f"{address}?{urlencode({'from': names[0], 'to': names[1]})}"


@require_GET
def release_compare(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """`?from=` and `?to=`: a release's number or "running"; `?all=1` also shows what is equal."""
    environment = get_environment(request.user, slug, kind)
    known = {str(release.number): release for release in environment.project.releases.defer("content").order_by("-number")}
    before, after = _asked(request, environment, known)
    everything = request.GET.get("all") == "1"
    context = {
        "project": environment.project,
        "environment": environment,
        "releases": list(known.values()),
        "before": before,
        "after": after,
        "difference": sides.difference(before, after, environment) if known else None,
        "everything": everything,
        "swapped": compare_address(environment, after, before) + ("&all=1" if everything else ""),
    }
    return render(request, "deployments/release_compare.html", context, part="deployments/_difference.html")


def _asked(request: UserRequest, environment: Environment, known: dict[str, Release]) -> tuple[Release | None, Release | None]:
    """What was asked for; without a question what runs and the newest release, and where nothing runs the two newest."""
    newest = list(known.values())[:2]
    nothing_runs = sides.last_run(environment) is None
    chosen: list[Release | None] = []
    for name, otherwise in (("from", newest[-1] if nothing_runs and newest else None), ("to", newest[0] if newest else None)):
        asked = request.GET.get(name, "")
        if asked and asked != RUNNING and asked not in known:
            raise Http404(f"There is no release {asked}: it may have been removed by the retention rule.")
        chosen.append(otherwise if not asked else known.get(asked))
    return chosen[0], chosen[1]
