"""Machines and what runs on them: what is wished of them, and what their agents report.

Wishes go down (an agent takes them as orders: ordering.py), news comes up (reports) and wakes whoever added himself to `on_report`.
How an agent joins: joining.py.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.db import connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Greatest
from django.utils import timezone

from portal.errors import Invalid, NotAllowed
from portal.models import Environment, Group, MachineKind
from portal.prepared import Prepared
from runtimes import authority, protocol, reach_orders, reports, votes, wakeup
from runtimes.models import Bundle, FailoverGroup, GroupMember, Machine, Router, Runtime

logger = logging.getLogger(__name__)

# What a machine may know more than a portal that was restored; one that says so much more is wrong, and believed, it would lead its orders'
# version and its environment's generation out of every number's range.
ORDERS_SINCE_A_BACKUP, REBUILDS_SINCE_A_BACKUP = 10**9, 1000

# Called with the environment's id and the machine's name after every stored report, outside its transaction. deployments adds rollout.wake.
on_report: list[Callable[[int, str], None]] = []


# ------------------------------------------------------------------------------------------------------------------- reports


def record_report(machine: Machine, report: protocol.Report, *, now: datetime) -> bool:
    """Write what an agent says into observed_*; store events as LeadershipChange and outcomes into GroupRequest; keep logs bounded.

    False: the report is older than one already stored, and was ignored. Idempotent: events and outcomes may come twice.
    """
    with transaction.atomic():
        news = reports.store(machine, report, now=now)
        if news is None:
            return False
        if news.cluster_became_known or news.command_ended:  # an empty data directory is refused now; or an order is done with
            touch(machine)
        _learn(machine, report, now)
        touch(*reach_orders.store(machine, report.reach, now=now))
        transaction.on_commit(lambda: _tell(machine))
    return True


def _learn(machine: Machine, report: protocol.Report, now: datetime) -> None:
    """This portal was restored from a backup: what the machine's router has become since is taken over from what it says, so that nothing
    that runs is ordered back (docs/failover.md). A later generation is believed of most of the machines that are heard, not of one."""
    said, environment = report.router, machine.environment
    if said is None or said.state != protocol.RouterState.RUNNING or not said.cluster_token:
        return
    name, generation = protocol.cluster_of(said.cluster_token)
    own, known = protocol.cluster_of(reports.cluster_token(environment))
    if report.orders_version > machine.orders_version + ORDERS_SINCE_A_BACKUP or generation > known + REBUILDS_SINCE_A_BACKUP:
        logger.warning("%s tells of orders %d in %s: nobody can have given them.", machine, report.orders_version, said.cluster_token)
        return
    if name != own or generation < known or (generation == known and report.orders_version <= machine.orders_version):
        return
    if generation > known and not _most_are_in(environment, said.cluster_token, now):
        return
    if Environment.objects.filter(pk=environment.pk, generation__lt=generation).update(generation=generation):
        # Nobody founds that generation once more beside those who run in it.
        voting = [router.pk for router in routers_of(environment) if router.machine.name in router.desired_members]
        Router.objects.filter(pk__in=voting).update(cluster_known=True)
    address = urlsplit(said.address)
    as_it_runs: dict[str, Any] = {"desired_running": True, "cluster_known": True, "survivor": False, "desired_change": None}
    if said.members:
        as_it_runs["desired_members"] = {member.name or member.id: member.url for member in said.members}
    if address.hostname and address.port:
        as_it_runs |= {"desired_host": address.hostname, "desired_port": address.port}
    Router.objects.filter(machine=machine).update(**as_it_runs, desired_member_id=said.ordered_as[:32])
    # Above every version that its agent has taken: it waits for a higher one.
    later = Greatest(F("orders_version"), Value(report.orders_version))
    Machine.objects.filter(pk=machine.pk).update(orders_version=later)
    touch(*Machine.objects.filter(environment=environment))
    logger.warning("%s runs generation %d of its cluster: taken over from its report.", machine, generation)


def _most_are_in(environment: Environment, token: str, now: datetime) -> bool:
    heard = [router for router in routers_of(environment) if not router.machine.is_silent(now=now)]
    return 2 * sum(router.observed_token == token for router in heard) > len(heard)


def _tell(machine: Machine) -> None:
    """A listener's trouble is not the agent's: its report is stored."""
    for hook in on_report:
        try:
            hook(machine.environment_id, machine.name)
        except Exception:
            logger.exception("A listener to reports failed.")


# ----------------------------------------------------------------------------------------------------------------- wishes


def take_rows(machines: Iterable[int]) -> None:
    """Inside a transaction, before anything of these machines (ids) is written: a report takes its machine's row first and then its
    runtimes', so whoever took them the other way round would wait for a report that waits for him. (SQLite's lock is the transaction.)"""
    if connection.features.has_select_for_update and connection.in_atomic_block:
        list(Machine.objects.select_for_update().filter(pk__in=set(machines)).order_by("pk").values_list("pk", flat=True))


def touch(*machines: Machine) -> None:
    """What these machines should do has changed: raise orders_version, and wake their waiting agents after commit."""
    ids = sorted({machine.pk for machine in machines})
    if ids:
        Machine.objects.filter(pk__in=ids).update(orders_version=F("orders_version") + 1)
        transaction.on_commit(lambda: wakeup.send(ids))


@transaction.atomic
def renew_authority(environment: Environment, *, now: datetime) -> None:
    """A new certificate authority, trusted beside the former one; machines get new certificates by themselves. Raises: see authority."""
    authority.renew(environment, now=now)
    touch(*Machine.objects.filter(environment=environment))


@transaction.atomic
def retire_authority(environment: Environment, *, now: datetime) -> None:
    """The former authority is trusted no more, once every machine has a certificate of the new one. Raises: see authority."""
    authority.retire(environment, now=now)
    touch(*Machine.objects.filter(environment=environment))


@transaction.atomic
def replace_authority(environment: Environment, *, now: datetime) -> None:
    """Another certificate authority instead of one that cannot sign any more. Raises: see authority."""
    authority.replace(environment, now=now)
    touch(*Machine.objects.filter(environment=environment))


# ------------------------------------------------------------------------------------------------------------------- bundles


def store_bundle(environment: Environment, content: protocol.BundleContent) -> Bundle:
    """The bundle with this content, made when it is new. Equal content is one bundle. One query."""
    data = protocol.encode(content)
    bundle = Bundle(
        digest=protocol.digest_of(data),
        environment=environment,
        release_number=content.release,
        content=data,
        layout=layout_of(content),
    )
    # One that is there gets the same bytes, sealed under the key of now: its own may be lost.
    Bundle.objects.bulk_create([bundle], update_conflicts=True, unique_fields=["digest"], update_fields=["content"])
    return bundle


def layout_of(content: protocol.BundleContent) -> str:
    """A digest of which flow is in which group, and which groups fail over; names and values do not matter."""
    return layout_digest(((flow.id, flow.group) for flow in content.flows), ((group.id, group.fails_over) for group in content.groups))


def layout_digest(flows: Iterable[tuple[str, str | None]], groups: Iterable[tuple[str, bool]]) -> str:
    """Of flows with their groups, and groups with whether they fail over; in any order."""
    told = [sorted([flow, group or ""] for flow, group in flows), sorted([group, fails_over] for group, fails_over in groups)]
    return protocol.digest_of(protocol.encode(told))


def ordered_bundle(machine: Machine, digest: str) -> Bundle | None:
    """A bundle that one of this machine's runtimes is ordered to run; no other may be fetched, for it may hold secrets."""
    return Bundle.objects.filter(pk=digest, pk__in=Runtime.objects.filter(machine=machine).values("desired_bundle_id")).first()


@transaction.atomic
def assign(runtime: Runtime, bundle: Bundle, *, release: int | None = None) -> None:
    """Order a runtime to run a bundle: writes desired_* and stops there. Failover groups and members follow the bundle; a hold ends.

    `release`: the number of the release that gives it this bundle, when an earlier one gave it the same (None: the bundle's own).
    """
    content = bundle.read()
    siblings = Runtime.objects.filter(environment_id=runtime.environment_id, connector_id=runtime.connector_id)
    take_rows(siblings.values_list("machine_id", flat=True) if content.groups else [runtime.machine_id])
    touched = _refresh_groups(runtime, content)
    columns = ("desired_bundle", "held", "desired_stopped_flows")
    before, held, stopped = Runtime.objects.select_for_update().values_list(*columns).get(pk=runtime.pk)
    number = bundle.release_number if release is None else release
    changes: dict[str, Any] = {"desired_release": number}
    if before != bundle.pk or held:
        runtime.desired_stopped_flows = _stopped_flows(before, stopped, content)
        changes |= {"desired_bundle": bundle, "desired_stopped_flows": runtime.desired_stopped_flows, "held": ""}
        touched.add(runtime.machine)
    Runtime.objects.filter(pk=runtime.pk).update(**changes)
    runtime.desired_bundle, runtime.desired_release, runtime.held = bundle, number, ""
    touch(*touched)


def _stopped_flows(before: str | None, stopped: Iterable[str], content: protocol.BundleContent) -> list[str]:
    """What a person stopped stays so; a flow that does not start by itself is stopped when it comes, until a person starts it. `before` is
    the digest of the bundle that was ordered until now, `stopped` what was stopped then."""
    free = {flow.id: flow for flow in content.flows if flow.group is None}
    waiting = {key for key, flow in free.items() if not flow.auto_start}
    if waiting and before is not None:
        bundle = Bundle.objects.get(pk=before)
        former = [] if bundle.is_lost else bundle.read().flows
        waiting -= {flow.id for flow in former if flow.group is None}
    return sorted(waiting | (set(stopped) & free.keys()))


_groups_of = Prepared(
    lambda runtime, connector: (
        GroupMember.objects.filter(runtime=runtime, group__group__connector=connector).order_by().values_list("group_id", flat=True)
    )
)


def _refresh_groups(runtime: Runtime, content: protocol.BundleContent) -> set[Machine]:
    """Make groups and members as the bundle says; returns the machines whose memberships changed."""
    siblings: list[Runtime] = []
    known: dict[str, Group] = {}
    if content.groups:
        rows = Runtime.objects.filter(environment_id=runtime.environment_id, connector_id=runtime.connector_id)
        siblings = list(rows.select_related("machine"))
        known = {group.key: group for group in Group.objects.filter(connector_id=runtime.connector_id)}
    touched: set[Machine] = set()
    kept: list[FailoverGroup] = []
    for spec in content.groups:
        if spec.id not in known:
            raise Invalid(f"Group {spec.name} ({spec.id}) of the bundle is no group of connector {content.connector}.", field="groups")
        group, _ = FailoverGroup.objects.update_or_create(
            environment_id=runtime.environment_id, group=known[spec.id], defaults={"name": spec.name, "failover": spec.failover}
        )
        kept.append(group)
        present = {member.runtime_id: member for member in group.members.select_related("runtime__machine")}
        for sibling in siblings:
            if sibling.pk not in present:
                GroupMember.objects.get_or_create(group=group, runtime=sibling)
                touched.add(sibling.machine)
    gone = set(_groups_of.all(runtime.pk, runtime.connector_id)) - {group.pk for group in kept}
    if gone:
        GroupMember.objects.filter(runtime=runtime, group__in=gone).delete()
        touched.add(runtime.machine)
    return touched


# -------------------------------------------------------------------------------------------- runtimes and ungrouped flows


def start(runtime: Runtime) -> None:
    """Wish that the runtime runs; the wish stays until somebody stops it. Raises NotAllowed while it is held."""
    refuse_held(runtime)
    _want(runtime, running=True)


def stop(runtime: Runtime) -> None:
    """Wish that the runtime is stopped; the wish survives deployments and reboots."""
    _want(runtime, running=False)


@transaction.atomic
def _want(runtime: Runtime, *, running: bool) -> None:
    take_rows([runtime.machine_id])
    if Runtime.objects.filter(pk=runtime.pk).exclude(desired_running=running).update(desired_running=running):
        touch(runtime.machine)
    runtime.desired_running = running


@transaction.atomic
def hold(runtime: Runtime, why: str) -> None:
    """Stop the runtime until it is deployed; that it was wished to run stays wished. Its agent starts it again only with the bundle that
    is ordered then. `why` is a sentence for people."""
    take_rows([runtime.machine_id])
    if Runtime.objects.filter(pk=runtime.pk, held="").update(held=why):
        touch(runtime.machine)
        runtime.held = why


@transaction.atomic
def retire(runtime: Runtime, why: str) -> None:
    """The release that is deployed has nothing for this runtime: hold it, and take it out of its groups, which end with it. Its next
    bundle brings it back into those that this names. `why` is a sentence for people."""
    hold(runtime, why)
    if GroupMember.objects.filter(runtime=runtime).delete()[0]:
        touch(runtime.machine)


def refuse_held(runtime: Runtime) -> None:
    """Raises NotAllowed with the remedy: what it would run must not run beside what its siblings run."""
    why = Runtime.objects.filter(pk=runtime.pk).values_list("held", flat=True).first()
    if why:
        raise NotAllowed(f"{runtime.key} stays stopped until it is deployed: {why.rstrip('.')}. Deploy a release to start it.")


@transaction.atomic
def restart(runtime: Runtime) -> None:
    """Wish one restart of a running runtime.

    Raises:
        NotAllowed: it is stopped; start it instead. Or it is held.
    """
    refuse_held(runtime)
    take_rows([runtime.machine_id])
    if not Runtime.objects.filter(pk=runtime.pk, desired_running=True).update(desired_restarts=F("desired_restarts") + 1):
        raise NotAllowed(f"{runtime.key} is stopped: start it instead.")
    runtime.refresh_from_db(fields=["desired_restarts"])
    touch(runtime.machine)


def start_flow(runtime: Runtime, flow_key: str) -> None:
    """Let an ungrouped flow run. Raises Invalid for a grouped one: its group is started and stopped instead."""
    _want_flow(runtime, flow_key, running=True)


def stop_flow(runtime: Runtime, flow_key: str) -> None:
    """Stop an ungrouped flow, until somebody starts it. Raises Invalid for a grouped one."""
    _want_flow(runtime, flow_key, running=False)


@transaction.atomic
def _want_flow(runtime: Runtime, flow_key: str, *, running: bool) -> None:
    # On SQLite the transaction is the lock (IMMEDIATE); elsewhere the row is.
    take_rows([runtime.machine_id])
    row = Runtime.objects.select_for_update(of=("self",)).select_related("desired_bundle", "machine", "connector").get(pk=runtime.pk)
    if row.desired_bundle is None:
        raise Invalid(f"Nothing was deployed to {row.key} yet.", field="flow")
    content = row.desired_bundle.read()
    flow = next((flow for flow in content.flows if flow.id == flow_key), None)
    if flow is None:
        raise Invalid(f"Release {content.release} on {row.key} has no flow {flow_key}.", field="flow")
    if flow.group is not None:
        name = next((group.name for group in content.groups if group.id == flow.group), flow.group)
        raise Invalid(f"{flow.name} belongs to group {name}: start or stop it on the tab Groups.", field="flow")
    stopped = set(row.desired_stopped_flows)
    wished = stopped - {flow_key} if running else stopped | {flow_key}
    if wished != stopped:
        Runtime.objects.filter(pk=row.pk).update(desired_stopped_flows=sorted(wished))
        touch(row.machine)
    runtime.desired_stopped_flows = sorted(wished)


# ------------------------------------------------------------------------------------------------------------------- routers


def electorate_of(environment: Environment, addresses: dict[str, tuple[str, int]]) -> votes.Electorate:
    """Who votes at these addresses: machine name -> (Internal IP, Failover port). Routers that are leaving need none.

    Raises:
        Invalid: an address:port used twice (naming both machines), or a vote count that is even: "Two votes without a witness …".
    """
    routers = {router.machine.name: router for router in routers_of(environment) if not router.leaving or router.machine.name in addresses}
    for name in sorted(addresses.keys() - routers.keys()):
        raise Invalid(f"{name} has no router in {environment.name}: apply the architecture first.", field=name)
    kinds = {name: router.machine.kind for name, router in routers.items()}
    for name in sorted(name for name in routers.keys() - addresses.keys() if kinds[name] == MachineKind.EXTERNAL):
        raise Invalid(f"The router on {name} has no address: fill in {name}.failover.internal-ip and {name}.failover.port.", field=name)
    return votes.electorate(kinds, addresses)


def routers_of(environment: Environment) -> list[Router]:
    routers = Router.objects.filter(machine__environment=environment)
    return list(routers.select_related("machine__environment").order_by("machine__kind", "machine__name"))


def has_routers(environment_id: int) -> bool:
    """May what is deployed there now fail over. Routers that are leaving only serve what still runs."""
    return Router.objects.filter(machine__environment=environment_id, leaving=False).exists()


def needing_routers(environment_id: int) -> list[Runtime]:
    """Runtimes that run in failover, or are ordered to: without a router they would stand still. Of a silent machine only the order is
    known. Two queries."""
    rows = list(Runtime.objects.filter(environment=environment_id).select_related("machine", "connector"))
    now, digests = timezone.now(), {}
    for row in rows:
        ordered = row.desired_running and not row.held
        seen = row.observed_state != protocol.RuntimeState.STOPPED and not row.machine.is_silent(now=now)
        digests[row.pk] = {row.desired_bundle_id if ordered else None, row.observed_digest if seen else None}
    known = Bundle.objects.filter(pk__in={digest for some in digests.values() for digest in some if digest})
    in_failover = {bundle.pk for bundle in known if bundle.is_lost or any(group.fails_over for group in bundle.read().groups)}
    return [row for row in rows if digests[row.pk] & in_failover]


@transaction.atomic
def end_cluster(environment: Environment) -> None:
    """No router is left: nothing there runs in failover any more."""
    routers = Router.objects.filter(machine__environment=environment)
    if routers.filter(cluster_known=True).exists():
        # One that is built later starts its revisions anew, and epochs must only grow.
        Environment.objects.filter(pk=environment.pk).update(generation=F("generation") + 1)
    routers.delete()
    touch(*Machine.objects.filter(environment=environment))


def others_at(router: Router) -> list[Router]:
    """Routers of other environments that are ordered to run at the same address. In another network that may be right; on one machine
    only one of them can have it."""
    same = Router.objects.filter(desired_running=True, desired_host=router.desired_host, desired_port=router.desired_port)
    others = same.exclude(machine__environment=router.machine.environment_id).select_related("machine__environment__project")
    return list(others.order_by("machine__environment__project__slug", "machine__environment__position", "machine__name"))


@transaction.atomic
def assign_routers(environment: Environment, addresses: dict[str, tuple[str, int]]) -> None:
    """Order the environment's routers (and witness) to found one cluster. A running one is changed by `membership.assign`.

    A router beyond the five that vote gets `members` without its own name: it only passes traffic on.

    Raises:
        Invalid: see electorate_of.
        NotAllowed: the routers already form a cluster, and these addresses would change its members.
    """
    result = electorate_of(environment, addresses)
    routers = {router.machine.name: router for router in routers_of(environment)}
    refuse_unencrypted(environment, routers.values())
    known = next((router for router in routers.values() if router.cluster_known and router.desired_members), None)
    if known is not None and known.desired_members != result.members:
        raise NotAllowed(f"The routers of {environment.name} already run as one cluster: a deployment's step Deploy routers changes them.")
    for name, router in routers.items():
        running = name in result.members or name in result.gateways
        host, port = addresses.get(name, ("", None))
        wish = (running, host.strip(), port, result.members) if running else (False, "", None, {})
        order_router(
            router,
            desired_running=wish[0],
            desired_host=wish[1],
            desired_port=wish[2],
            desired_members=wish[3],
            desired_gateways=bool(result.gateways) and name in result.members,
        )


def order_router(router: Router, **wish: Any) -> bool:
    """Write what is wished of a router, and wake its agent when that is new."""
    if all(getattr(router, field) == value for field, value in wish.items()):
        return False
    take_rows([router.machine_id])
    Router.objects.filter(pk=router.pk).update(**wish)
    for field, value in wish.items():
        setattr(router, field, value)
    touch(router.machine)
    return True


def shared_addresses(environment: Environment, addresses: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    """Warnings, one per router whose address:port a router of another environment has too. Right where their networks are two; on one host
    only the first can run. They never join each other: each environment has its own certificates and its own cluster."""
    others = Router.objects.filter(desired_running=True).exclude(machine__environment=environment)
    taken: dict[tuple[str, int | None], Router] = {
        (router.desired_host.strip().lower(), port): router
        for router in others.select_related("machine__environment__project").order_by("-pk")
        if router.desired_port is not None
        for port in (router.desired_port, router.desired_port + 1)[: 2 if router.desired_gateways else 1]
    }
    found = []
    for machine, (host, port) in sorted(addresses.items()):
        number = int(port) if port and port.isdigit() else None
        other = taken.get((host.strip().lower(), number)) if host and number else None
        if other is not None:
            found.append(
                f"{machine} has the address {host}:{port} that {other.machine.name} of {other.machine.environment} has too: "
                f"on one host only one of them can run. If it is one, give {machine} another Failover port ({machine}.failover.port)."
            )
    return found


def refuse_unencrypted(environment: Environment, routers: Iterable[Router]) -> None:
    """Members of one cluster cannot change from plain to encrypted traffic while they run, and a majority must run to change anything."""
    if any(url.startswith("http://") for router in routers if router.cluster_known for url in router.desired_members.values()):
        raise NotAllowed(
            f"The routers of {environment.name} were made before their traffic was encrypted and cannot be changed: "
            "begin anew with an empty portal and empty agents' homes (under make run: another BATON_HOME)."
        )
