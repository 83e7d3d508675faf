"""The ends of a comparison, read from the database: a release in an environment, and what runs there."""

from collections.abc import Sequence
from dataclasses import replace

from deployments import frozen, plans
from deployments.comparison import Difference, Side, compare
from deployments.models import Deployment, FrozenValues, Release, RunStatus
from portal.models import Environment
from runtimes.models import Runtime
from runtimes.protocol import RuntimeState

STARTED = (RunStatus.RUNNING, RunStatus.WAITING, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.CANCELLED)


def releases(before: Release, after: Release) -> Difference:
    """Two releases by themselves, without an environment: no values, no preferences, the plans as they were when each was made."""
    kinds = sorted({*before.content.get("plans", {}), *after.content.get("plans", {})})

    def side(release: Release) -> Side:
        recorded = release.content.get("plans")
        lines = None if recorded is None else [f"{kind}: {plans.line_of(step)}" for kind in kinds for step in recorded.get(kind, [])]
        return Side(_label(release), release.content, plan=lines, notes=_omissions(release))

    return compare(side(before), side(after))


def releases_on(before: Release, after: Release, environment: Environment) -> Difference:
    """Two releases in an environment: values and preferences as each found them when it was last deployed there."""
    return compare(_release_side(before, environment), _release_side(after, environment))


def running_and(release: Release, environment: Environment) -> Difference:
    """What deploying the release now would change against what runs."""
    return compare(running_side(environment), _present_side(release, environment))


def release_and_running(release: Release, environment: Environment) -> Difference:
    """The other way round."""
    return compare(_present_side(release, environment), running_side(environment))


def _label(release: Release) -> str:
    return f"release {release.number}"


def _omissions(release: Release) -> list[str]:
    return [f"Release {release.number}: {sentence}" for sentence in release.omissions]


def _present_side(release: Release, environment: Environment) -> Side:
    """The release with the plan, values and preferences of this moment."""
    return Side(
        _label(release),
        release.content,
        plan=[plans.line_of(plans.written(step)) for step in plans.plan_of(environment).steps.all()],
        values=frozen.compared(frozen.present(release, environment)),
        preferences=frozen.preferences(environment),
        uses=frozen.keys_used(release, environment),
        notes=_omissions(release),
    )


def _release_side(release: Release, environment: Environment) -> Side:
    last = Deployment.objects.filter(environment=environment, release=release, status__in=STARTED).order_by("-pk").first()
    kept = frozen.of(last) if last else None
    recorded = release.content.get("plans")
    side = Side(
        _label(release),
        release.content,
        plan=None if recorded is None else [plans.line_of(step) for step in recorded.get(environment.kind, [])],
        values=frozen.compared(frozen.present(release, environment)),
        preferences=frozen.preferences(environment),
        uses=frozen.keys_used(release, environment),
        notes=[
            f"Release {release.number} was never deployed on {environment.name}: it is shown with the values and preferences of now.",
            *_omissions(release),
        ],
    )
    if last is None or kept is None:
        return side
    note = f"Release {release.number} is shown with the values and preferences that deployment {last.pk} froze."
    values = frozen.compared(frozen.entries_of(kept, environment))
    return replace(side, values=values, preferences=kept.preferences, notes=[note, *_omissions(release)])


def last_run(environment: Environment) -> Deployment | None:
    """The deployment whose release runs: the last that ran (DeploymentQuerySet.that_ran), else the last that began."""
    begun = Deployment.objects.filter(environment=environment, started_at__isnull=False).select_related("release").order_by("-pk")
    return begun.that_ran().first() or begun.first()


def running_side(environment: Environment) -> Side:
    """What runs: the release of the last deployment that succeeded, with its frozen values and the plan it followed; runtimes that report
    another release are named in a note. Nothing was deployed yet: an empty side."""
    last = last_run(environment)
    if last is None:
        empty: dict[str, list[str]] = {"flows": [], "groups": [], "connectors": [], "machines": []}
        return Side("nothing", empty, plan=[], values={}, preferences={}, notes=[f"Nothing was deployed on {environment.name} yet."])
    kept = frozen.of(last)
    return Side(
        f"what runs on {environment.name} (release {last.release.number}, deployment {last.pk})",
        last.release.content,
        plan=[plans.line_of(plans.written(step)) for step in _whole(last).steps.all()],
        values=frozen.compared(frozen.entries_of(kept, environment)) if kept else None,
        preferences=kept.preferences if kept else None,
        uses=frozen.keys_used(last.release, environment),
        notes=[*_unsettled(environment, last), *_others(environment, last.release), *_other_values(environment, kept)],
    )


def _whole(run: Deployment) -> Deployment:
    """The deployment by whose plan it ran: one that brings a machine what it missed follows only a part of it."""
    while run.completes is not None:
        run = run.completes
    return run


def _unsettled(environment: Environment, last: Deployment) -> Sequence[str]:
    newest = Deployment.objects.filter(environment=environment, started_at__isnull=False).select_related("release").order_by("-pk").first()
    if newest is None or newest.pk == last.pk or (newest.status == RunStatus.SUCCEEDED and _whole(newest) == last):
        return []
    word = newest.get_status_display().lower()
    return [f"Deployment {newest.pk} of release {newest.release.number} came after it and is {word}: {environment.name} may be mixed."]


def _others(environment: Environment, release: Release) -> Sequence[str]:
    rows = Runtime.objects.filter(environment=environment, observed_release__isnull=False).exclude(observed_release=release.number)
    rows = rows.exclude(observed_state=RuntimeState.STOPPED).select_related("machine", "connector")
    return [f"{row.key} reported release {row.observed_release}, not {release.number}." for row in rows]


def _other_values(environment: Environment, kept: FrozenValues | None) -> Sequence[str]:
    """Runtimes whose bundle was made of other values: those of before a resume, of a deployment that failed, of a machine left out. Only
    keys that the runtime's own flows name: the others of its deployment are not in its bundle."""
    if kept is None:
        return []
    others = [row for row in frozen.running(environment) if row.frozen.digest != kept.digest]
    own_values = FrozenValues.objects.filter(pk__in={row.frozen_id for row in others}).select_related("deployment__release").in_bulk()
    told = []
    for row in others:
        machine, connector, theirs = row.runtime.machine.name, row.runtime.connector.name, own_values[row.frozen_id]
        own, shown = frozen.effective(theirs.values, machine, connector), frozen.effective(kept.values, machine, connector)
        used = frozen.keys_of_flows(theirs.deployment.release, connector)
        if keys := [key for key in frozen.changed_keys(own, shown) if key in used]:
            told.append(f"{row.runtime.key} runs with other values of {', '.join(keys)}, frozen by deployment {row.frozen.deployment_id}.")
    return told


def difference(before: Release | None, after: Release | None, environment: Environment) -> Difference:
    """Any two ends in an environment; None is what runs there."""
    if before is None and after is None:
        running = running_side(environment)
        return compare(running, running)
    if before is None:
        assert after is not None
        return running_and(after, environment)
    return release_and_running(before, environment) if after is None else releases_on(before, after, environment)
