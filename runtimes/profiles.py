"""The timing profile of an environment: how fast it fails over, and how its routers and runtimes come to another one.

Members of one group may run under different profiles meanwhile: whoever takes leadership waits for the TTL that the leader's own session
declares, so no moment of the change can have two leaders (docs/failover.md, Timing profiles).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet

from portal import property_uses
from portal.models import Environment, TimingProfile
from runtimes import protocol
from runtimes.fleet import touch
from runtimes.models import GroupMember, Machine, Router

CRASH_SECONDS = 0.1  # whatever the profile: the keeper proves the death
SETTLES = timedelta(seconds=6)  # until a restarted router's reports tell of its new life

MEANT_FOR = {
    TimingProfile.LAN: "Machines on one network. Bears pauses and lost packets of half a second.",
    TimingProfile.FAST_LAN: "Quiet machines on one fast network with fast disks. A stall of 0.4 s moves leadership.",
    TimingProfile.WAN: "Machines on different sites, with round trips of up to 150 ms. Bears silence of 3 seconds.",
}


def timing_of(profile: str) -> protocol.Timing:
    return protocol.PROFILES[protocol.TimingProfile(profile)]


def name_of(ttl: float) -> str:
    """The profile whose TTL this is, as people call it; the figure itself when no profile of this version has it."""
    found = next((profile for profile, timing in protocol.PROFILES.items() if timing.ttl == ttl), None)
    return str(TimingProfile(found.value).label) if found is not None else f"TTL {ttl:g} s"


def expected(ttl: float) -> str:
    """How long a group stands still under a profile, in words."""
    return f"about {ttl:g} s after a power-off or a hang, about {CRASH_SECONDS:g} s after a crash"


@dataclass(frozen=True)
class InUse:
    """The profile that is wished, and what members and routers have of it."""

    profile: TimingProfile
    behind: list[str]  # "external02.erp (LAN)", "router on external01 (WAN)": they take it over with their next deployment

    @property
    def label(self) -> str:
        return str(self.profile.label)

    @property
    def behind_in_words(self) -> str:
        """ "external01.erp (LAN), external02.erp (LAN) and 3 more" """
        more = f" and {len(self.behind) - 2} more" if len(self.behind) > 2 else ""
        return ", ".join(self.behind[:2]) + more

    @property
    def timing(self) -> protocol.Timing:
        return timing_of(self.profile)

    @property
    def expected(self) -> str:
        return expected(self.timing.ttl)


def in_use(environment: Environment) -> InUse:
    wished = TimingProfile(environment.timing_profile)
    ttl = timing_of(wished).ttl
    members = (
        GroupMember.objects.filter(group__environment=environment, observed_ttl__isnull=False)
        .exclude(observed_ttl=ttl)
        .select_related("runtime__machine", "runtime__connector")
    )
    behind = {f"{member.runtime.key} ({name_of(member.observed_ttl or 0.0)})" for member in members}
    routers = Router.objects.filter(machine__environment=environment, desired_running=True).exclude(desired_profile=wished)
    behind |= {
        f"{property_uses.router_name(router.machine.name, router.machine.kind)} ({TimingProfile(router.desired_profile).label})"
        for router in routers.select_related("machine")
    }
    return InUse(wished, sorted(behind))


@transaction.atomic
def choose(environment: Environment, profile: str) -> None:
    """Wish a profile. Nothing that runs changes: routers and runtimes take it over with the next deployment."""
    Environment.objects.filter(pk=environment.pk).update(timing_profile=TimingProfile(profile))
    environment.timing_profile = TimingProfile(profile)
    touch(*Machine.objects.filter(environment=environment))


def retime_founders(environment: Environment) -> None:
    """Routers that have never run begin with the environment's profile."""
    _ordered(_behind(environment).filter(cluster_known=False), environment, None)


def retime_next(environment: Environment, *, now: datetime) -> str:
    """Order one more router of a running cluster to take over the profile, and only while all others run: etcd restarts for it.

    Returns:
        What is going on, as a sentence; empty when every router has the profile and had the time to come back.
    """
    routers = list(Router.objects.filter(machine__environment=environment, desired_running=True).select_related("machine"))
    behind = sorted((router for router in routers if router.desired_profile != environment.timing_profile), key=_last_the_leaders)
    label = TimingProfile(environment.timing_profile).label
    settling = [router for router in routers if router.retimed_at is not None and now - router.retimed_at < SETTLES]
    if settling:
        return f"The {_name(settling[0])} starts with the profile {label}."
    waiting = next((router for router in routers if router.observed_reason.startswith(protocol.RESTART_WAITS)), None)
    if waiting is not None:
        return f"The {_name(waiting)} does not take the profile {label} over yet: {waiting.observed_reason}."
    for router in behind:
        away = [other for other in routers if other.pk != router.pk and not _runs(other, now)]
        if not away:
            _ordered(Router.objects.filter(pk=router.pk, desired_profile=router.desired_profile), environment, now)
            return f"The {_name(router)} is restarted with the profile {label}."
    if behind:
        away = [router for router in routers if not _runs(router, now)]
        return f"The profile {label} waits: a router is restarted only while all others run, and the {_name(away[0])} does not."
    return ""


def _behind(environment: Environment) -> QuerySet[Router]:
    return Router.objects.filter(machine__environment=environment).exclude(desired_profile=environment.timing_profile)


def _ordered(routers: QuerySet[Router], environment: Environment, now: datetime | None) -> None:
    machines = list(Machine.objects.filter(router__in=routers))
    routers.update(desired_profile=environment.timing_profile, retimed_at=now)
    touch(*machines)


def _runs(router: Router, now: datetime) -> bool:
    taken = router.machine.orders_taken >= router.machine.orders_version
    return taken and not router.machine.is_silent(now=now) and router.observed_state == protocol.RouterState.RUNNING


def _last_the_leaders(router: Router) -> tuple[bool, str]:
    """The witness and routers of machines that lead nothing come first."""
    leads = GroupMember.objects.filter(runtime__machine=router.machine, observed_status=protocol.Status.LEADER).exists()
    return leads, router.machine.name


def _name(router: Router) -> str:
    return str(property_uses.router_name(router.machine.name, router.machine.kind))
