"""What /readyz asks of the groups, under `make run`: is every one of them led, by a report of this start."""

from datetime import datetime

from portal.readiness import stack_started_at
from runtimes import failover, protocol
from runtimes.models import FailoverGroup, Router
from runtimes.protocol import RouterState


def _why_without_leader(found: failover.Verdict) -> str:
    """Nobody leads, or nobody is known to: a silent machine may lead on, and members may run alone."""
    unheard = failover.unheard_leader(found)
    if unheard is not None:
        return f"Nobody is known to lead {found.group.name}: {unheard.machine}, which led it, has not been heard from."
    alone = [said.machine for said in found.members if said.status == protocol.Status.SINGLE_NODE]
    if alone:
        return f"Nobody leads {found.group.name}: {' and '.join(sorted(alone))} run{'s' if len(alone) == 1 else ''} alone."
    return f"Nobody is known to lead {found.group.name}."


def groups_have_leaders(now: datetime) -> str:
    """One sentence per failover group without a leader, then what keeps routers from running: the likely cause.

    A group whose members are all disabled or stopped by wish needs no leader.
    """
    started_at = stack_started_at()
    if started_at is None:
        return ""
    sentences = []
    groups = FailoverGroup.objects.filter(failover=True).prefetch_related("members__runtime__machine", "members__runtime__connector")
    for group in groups:
        members = list(group.members.all())
        if not any(member.runtime.desired_running and not member.runtime.held and not member.observed_disabled for member in members):
            continue
        found = failover.verdict(group, now=now)
        if found.leader is None:
            sentences.append(_why_without_leader(found))
        elif found.leader.member.observed_at is None or found.leader.member.observed_at < started_at:
            sentences.append(f"Nobody is known to lead {group.name} since this start.")
    if sentences:
        failed = Router.objects.filter(observed_state=RouterState.FAILED, machine__last_report_at__gte=started_at)
        sentences += [f"The {router}: {router.observed_reason}." for router in failed.select_related("machine").order_by("machine__name")]
    return " ".join(sentences)
