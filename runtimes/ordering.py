"""What a machine is ordered to do: the whole wish, as its agent takes it."""

from datetime import datetime

import msgspec
from django.db.models import Exists, OuterRef, QuerySet

from portal.models import Environment, MachineKind
from portal.prepared import Prepared
from runtimes import authority, protocol, reach_orders, reports
from runtimes.models import (
    LIVE_COMMANDS,
    LIVE_REQUESTS,
    CommandRun,
    GroupMember,
    GroupRequest,
    ItemInquiry,
    Machine,
    Router,
    Runtime,
)

# What orders are not made of, but for where a router runs (authority.trust).
FACTS_OF_ROUTER = [
    f"router__{field.name}" for field in Router._meta.fields if field.name.startswith("observed_") and field.name != "observed_address"
]


def _requests(now: datetime) -> QuerySet[GroupRequest]:
    return GroupRequest.objects.filter(status__in=LIVE_REQUESTS, expires_at__gt=now)


def _open_inquiries(now: datetime) -> QuerySet[ItemInquiry]:
    return ItemInquiry.objects.filter(answered_at=None, expires_at__gt=now)


def _commands() -> QuerySet[CommandRun]:
    return CommandRun.objects.filter(status__in=LIVE_COMMANDS)


_with_what_is_open = Prepared(
    lambda machine, now: (
        Machine.objects.filter(pk=machine)
        .select_related("environment__certificate_authority", "router")
        .defer(*FACTS_OF_ROUTER)
        .annotate(
            tests=reach_orders.open_beside(now),
            asked=Exists(_requests(now).filter(group__members__runtime__machine=OuterRef("pk"))),
            inquired=Exists(_open_inquiries(now).filter(runtime__machine=OuterRef("pk"))),
            commanded=Exists(_commands().filter(machine=OuterRef("pk"))),
        )
    )
)
_runtimes_of = Prepared(
    lambda machine: (
        Runtime.objects.filter(machine=machine)
        .select_related("connector", "desired_bundle")
        .defer("desired_bundle__content", *reports.RUNTIME_FACTS)
        .order_by("connector__name")
    )
)
_groups_of = Prepared(
    lambda machine: (
        GroupMember.objects.filter(runtime__machine=machine).order_by("group__name").values_list("runtime_id", "group__group__key")
    )
)
_version = Prepared(
    lambda machine, credential: Machine.objects.filter(pk=machine, credential_digest=credential).values_list("orders_version", flat=True)
)


def newest_orders(machine: Machine) -> int | None:
    """The version of a machine's orders: the cheap question of a waiting agent. None: the machine is gone, or its credential another."""
    return _version.first(machine.pk, machine.credential_digest)


def orders_for(machine: Machine, *, now: datetime) -> protocol.Orders:
    """The whole wish for one machine, in a fixed number of queries: three, and one more for each kind of thing that is seldom asked."""
    # The version is read first: a change in between is delivered again, never missed.
    machine = _with_what_is_open.get(machine.pk, now)
    environment = machine.environment
    runtimes = _runtimes_of.all(machine.pk)
    groups: dict[int, list[str]] = {runtime.pk: [] for runtime in runtimes}
    for runtime in runtimes:
        runtime.machine = machine
    for runtime_id, group in _groups_of.all(machine.pk):
        groups[runtime_id].append(group)
    timing = protocol.PROFILES[protocol.TimingProfile(environment.timing_profile)]
    return protocol.Orders(
        version=machine.orders_version,
        namespace=environment.namespace,
        generation=environment.generation,
        timing=timing,
        trust=authority.trust(machine),
        router=_router_order(machine),
        member_change=_member_change(machine),
        runtimes=[_runtime_order(runtime, groups[runtime.pk]) for runtime in runtimes],
        requests=_request_orders(_requests(now), machine, now) if getattr(machine, "asked", False) else [],
        inquiries=_inquiries(_open_inquiries(now), machine) if getattr(machine, "inquired", False) else [],
        commands=_command_orders(_commands(), machine) if getattr(machine, "commanded", False) else [],
        reach=reach_orders.orders(machine, now=now) if getattr(machine, "tests", False) else [],
    )


def _router_order(machine: Machine) -> protocol.RouterOrder | None:
    router: Router | None = getattr(machine, "router", None)
    if router is None or not router.desired_running or router.desired_port is None:
        return None
    timing = protocol.PROFILES[protocol.TimingProfile(router.desired_profile)]
    return protocol.RouterOrder(
        name=machine.name,
        peer_host=router.desired_host,
        peer_port=router.desired_port,
        cluster_token=reports.cluster_token(machine.environment),
        members=router.desired_members,
        gateways=router.desired_gateways,
        witness=machine.kind == MachineKind.CORE,
        member_id=router.desired_member_id,
        join_existing=bool(router.desired_member_id) and not router.cluster_known,
        may_start_empty=not router.cluster_known and not router.desired_member_id,
        survivor=router.survivor,
        disabled=_disabled(machine.environment) if router.survivor else {},
        heartbeat_ms=timing.etcd_heartbeat_ms,
        election_ms=timing.etcd_election_ms,
    )


def _member_change(machine: Machine) -> protocol.MemberChange | None:
    router: Router | None = getattr(machine, "router", None)
    return msgspec.convert(router.desired_change, protocol.MemberChange) if router is not None and router.desired_change else None


def _disabled(environment: Environment) -> dict[str, list[str]]:
    """Members that were last reported as disabled, by group: a cluster that is built anew must not forget one."""
    members = GroupMember.objects.filter(group__environment=environment).select_related(
        "group__group", "runtime__machine", "runtime__connector"
    )
    found: dict[str, list[str]] = {}
    for member in members:
        disabled = found.setdefault(member.group.group.key, [])
        if member.observed_disabled:
            disabled.append(member.runtime.key)
    return found


def _runtime_order(runtime: Runtime, groups: list[str]) -> protocol.RuntimeOrder:
    return protocol.RuntimeOrder(
        key=runtime.key,
        connector=runtime.connector.name,
        running=runtime.desired_running and not runtime.held,
        digest=runtime.desired_bundle_id,
        release=runtime.desired_bundle.release_number if runtime.desired_bundle else None,
        restarts=runtime.desired_restarts,
        preferences={group: protocol.Preference(runtime.preference) for group in groups},
        stopped_flows=list(runtime.desired_stopped_flows),
    )


def _inquiries(inquiries: QuerySet[ItemInquiry], machine: Machine) -> list[protocol.Inquiry]:
    return [
        protocol.Inquiry(
            id=str(inquiry.pk),
            runtime=inquiry.runtime.key,
            flow=inquiry.flow,
            act=protocol.ItemAct(inquiry.act),
            keys=inquiry.keys,
            actor=inquiry.actor,
        )
        for inquiry in inquiries.filter(runtime__machine=machine).select_related("runtime__machine", "runtime__connector")
    ]


def _command_orders(commands: QuerySet[CommandRun], machine: Machine) -> list[protocol.CommandOrder]:
    rows = commands.filter(machine=machine).order_by("created_at").defer("output")
    return [protocol.CommandOrder(id=str(row.pk), name=row.name, timeout_seconds=row.timeout_seconds) for row in rows]


def _request_orders(requests: QuerySet[GroupRequest], machine: Machine, now: datetime) -> list[protocol.GroupRequest]:
    rows = requests.filter(group__members__runtime__machine=machine).select_related("group__group").order_by("created_at")
    return [_request_order(request, now) for request in rows]


def _request_order(request: GroupRequest, now: datetime) -> protocol.GroupRequest:
    return protocol.GroupRequest(
        id=str(request.pk),
        kind=protocol.RequestKind(request.kind),
        group=request.group.group.key,
        machine=request.machine or None,
        expected_epoch=request.expected_epoch,
        cause=protocol.Cause(request.cause),
        actor=request.actor,
        valid_seconds=(request.expires_at - now).total_seconds(),
        policy=protocol.IsolationPolicy(request.policy) if request.policy else None,
    )
