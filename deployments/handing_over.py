"""Before a step touches a runtime: the gates are asked with what is seen of its groups, and what it leads is handed over first."""

from deployments import gates
from deployments.looks import Look, Outcome, actor, because, failed, running, tell
from deployments.models import DEPLOYS, Release, RunStatus, StepRun
from portal.errors import Busy, NotReady, Stale
from runtimes import balancing, failover, protocol
from runtimes.models import LIVE_REQUESTS, FailoverGroup, GroupRequest, Runtime
from runtimes.protocol import RequestStatus, Status

_BY_PREFERENCE = (protocol.Preference.LEADER, protocol.Preference.BACKUP, protocol.Preference.NONE)


# --------------------------------------------------------------------------------------------------------------- the gates


def gated(look: Look, *, stops: bool) -> Outcome | None:
    """What forbids to touch the runtime now; None: nothing, or a person took it upon himself."""
    seen = sights(look)
    found = gates.touch(look.runtime.key, seen, stops=stops, touched=under_change(look.step) if seen else ())
    if found.open or (found.may_be_overridden and look.step.override):
        look.memory.pop("gate", None)
        return None
    look.memory["gate"] = found.rule
    if found.hopeless and found.rule != "one":
        remedy = " Make one ready and retry, or override with a reason." if found.may_be_overridden else ""
        return failed(found.sentence + remedy)
    return running(found.sentence)


def sights(look: Look) -> list[gates.Sight]:
    """What the gates see of the runtime's failover groups. A group in which it is disabled does not count, for it cannot lead it; nor one
    that ends with this step."""
    views = [view for view in look.views if not ends_here(look.step, view.group)]
    return [sight for view in views if (sight := sight_of(view, look.runtime.key)) is not None]


def sight_of(view: failover.Verdict, key: str) -> gates.Sight | None:
    own = next((seen for seen in view.members if seen.member.runtime.key == key), None)
    others = [seen for seen in view.members if seen.member.runtime.key != key]
    if own is None or not others or own.status == Status.DISABLED:
        return None
    ready = [runtime.key for runtime in takers(view, key)]
    lacking = [seen for seen in others if seen.member.runtime.key not in ready]
    return gates.Sight(
        group=view.group.name,
        leader=view.leader.member.runtime.key if view.leader else None,
        ready=ready,
        lacking={seen.member.runtime.key: why_not(view, seen) for seen in lacking},
        hopeless=all(brings_nobody(seen) for seen in lacking),
    )


def takers(view: failover.Verdict, key: str) -> list[Runtime]:
    """Who could take a group over from this runtime now, the preferred one first."""
    ready = [
        seen.member.runtime
        for seen in view.members
        if seen.member.runtime.key != key and seen.status == Status.FOLLOWER and not failover.obstacle(view, seen)
    ]
    return sorted(ready, key=lambda other: (_BY_PREFERENCE.index(protocol.Preference(other.preference)), other.key))


def why_not(view: failover.Verdict, seen: failover.MemberVerdict) -> str:
    """Why this member could not take over now, a sentence."""
    runtime = seen.member.runtime
    if not runtime.desired_running:
        return f"{runtime.key} was stopped by a person."
    return failover.obstacle(view, seen) or f"{seen.machine} is {failover.WORDS[seen.status]}."


def brings_nobody(seen: failover.MemberVerdict) -> bool:
    """Waiting does not make this member ready."""
    runtime = seen.member.runtime
    return (
        not runtime.desired_running
        or runtime.desired_bundle_id is None
        or seen.status == Status.DISABLED
        or seen.member.observed_disabled
        or runtime.machine.joined_at is None
        or (seen.age_seconds is not None and seen.age_seconds > balancing.SILENT_FOR_LONG_SECONDS)
    )


def under_change(step: StepRun) -> set[str]:
    """Runtimes that other steps of this deployment have ordered something and have not proven yet."""
    memories = StepRun.objects.filter(deployment_id=step.deployment_id, status=RunStatus.RUNNING).exclude(pk=step.pk)
    return {
        key
        for memory in memories.values_list("memory", flat=True)
        for key, told in memory.get("runtimes", {}).items()
        if told.get("touched") and not told.get("proven")
    }


# ----------------------------------------------------------------------------------------------------------- the hand-over


def hand_over(look: Look) -> Outcome | None:
    """Give up what the runtime leads before it is stopped: ask each group's best ready follower to take over, and wait for it.

    None: it leads nothing (any more), or a person said that it shall go on without a hand-over.
    """
    runtime, waits = look.runtime, []
    for view in look.views:
        leads = view.leader is not None and view.leader.member.runtime_id == runtime.pk
        if (leads or view.leader is None) and ends_here(look.step, view.group) and not takers(view, runtime.key):
            continue
        asked = look.memory.setdefault("requests", {}).get(str(view.group.pk))
        wait = None
        if asked:
            wait = _asked(GroupRequest.objects.filter(pk=asked).first(), view, runtime)
        elif leads:
            wait = _ask(look, view)
        if wait is not None and wait.state == "failed":
            return wait
        if wait is not None:
            waits.append(wait.sentence)
    return running(" ".join(waits)) if waits else None


def ends_here(step: StepRun, group: FailoverGroup) -> bool:
    """Is it a deploy step of a release that does not have the group: nobody needs to be ready to go on with it."""
    return step.kind in DEPLOYS and ends(step.deployment.release, group.group.key)


def ends(release: Release, group: str) -> bool:
    """Does the release lack the group (id): it goes with the deploy steps of its members."""
    return all(item["id"] != group for item in release.content["groups"])


def _asked(request: GroupRequest | None, view: failover.Verdict, runtime: Runtime) -> Outcome | None:
    """How far the hand-over is that was asked for. None: the runtime leads no more, and that is known, not only no longer heard."""
    group = view.group
    if request is not None and request.status in LIVE_REQUESTS:
        return running(f"{request.machine} is taking over {group} from {runtime.key}{because(request.reason)}")
    handed = request is None or request.status == RequestStatus.SUCCEEDED
    if view.leader is None and not handed:
        tail = because(request.reason or request.status) if request is not None else "."
        return running(f"{group} was not handed over from {runtime.key}, and nobody is known to lead it now{tail}")
    if view.leader is None or view.leader.member.runtime_id != runtime.pk:
        return None
    if handed or request is None:
        return running(f"{group} was handed over; {runtime.machine} has yet to report it.")
    return failed(f"{runtime.key} leads {group}, and its leadership was not handed over{because(request.reason or request.status)}")


def _ask(look: Look, view: failover.Verdict) -> Outcome | None:
    group, runtime, candidates = view.group, look.runtime, takers(view, look.runtime.key)
    if not candidates:
        return _goes_alone(look, group)
    candidate = candidates[0]
    try:
        request = failover.switch(
            group,
            candidate=candidate.machine.name,
            expected_leader=runtime.machine.name,
            actor=actor(look.step),
            cause=protocol.Cause.DEPLOY,
            now=look.now,
        )
    except (Busy, Stale, NotReady) as refusal:  # leadership is moving already, or the candidate just left: look again
        return running(refusal.sentence)
    look.memory["requests"][str(group.pk)] = str(request.pk)
    sentence = f"{candidate.key} is asked to take over {group} from {runtime.key} first."
    tell(look.step, sentence, look.now, machine=candidate.machine.name)
    return running(sentence)


def _goes_alone(look: Look, group: FailoverGroup) -> Outcome | None:
    """Only where a person said so."""
    key = look.runtime.key
    if not look.step.override:
        return running(f"{key} leads {group}, and no follower is ready to take over.")
    if str(group.pk) not in look.memory.setdefault("alone", []):
        look.memory["alone"].append(str(group.pk))
        look.tell(f"{key} leads {group} and goes on without a hand-over. {look.step.override}", level="warning")
    return None
