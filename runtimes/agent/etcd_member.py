"""One etcd member, pure: under which order it may start on which data, with which command line, how well it is, when it must restart."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from runtimes.agent import upkeep
from runtimes.agent.peers import addresses
from runtimes.protocol import RouterOrder, RouterState, TlsFiles, Wire, cluster_of

TRANSACTION_OPERATIONS = 8192  # a renewal makes two per failover group; etcd's own limit is 128
OPTIONS = 2  # grows with every change of command() that a router which runs has to be restarted for


class Member(Wire, frozen=True):
    """`router/member.json`: what this machine's member was started as."""

    name: str
    cluster_token: str
    members: dict[str, str]
    client_port: int
    led: bool = False  # did it ever know a majority
    etcd_version: str = ""  # of the etcd that was started on the data last
    member_id: str = ""
    cluster_id: str = ""
    joined: str = ""  # member_id of the order under which it started empty: never twice under one
    removed: bool = False  # the others told it that it is no member any more


class RouterLaunch(Wire, frozen=True):
    """What a running etcd cannot take over while it runs."""

    order: RouterOrder
    client_port: int
    version: str
    warning: str
    authority: str = ""  # digests of the authorities' certificates that it trusts (certificate.roots_of), with a blank between
    rebuilding: bool = False  # it builds the cluster anew from its data, away from the runtimes
    options: int = 0  # OPTIONS of the agent that started it


class Begin(StrEnum):
    GO = "go"
    DISCARD = "discard"  # old data that never was part of a cluster, or is a removed member's, goes first
    REBUILD = "rebuild"  # the data become those of a new cluster with this one member
    REFUSE = "refuse"
    OUTSIDE = "outside"  # refused, for it is no member of the ordered cluster any more
    FOREIGN = "foreign"  # refused, for its data are of a cluster of another name: it is cut off as by a wrong port, nobody put it out


def may_start(order: RouterOrder, member: Member | None, *, data: bool) -> tuple[Begin, str]:
    """May an etcd with this order use the data directory as it is. `data`: is there any."""
    if any(not url.startswith("https://") for url in order.members.values()):
        return Begin.REFUSE, (
            "this cluster was made before routers' traffic was encrypted: "
            "begin anew with an empty portal and an empty agent's home (under make run: another BATON_HOME)"
        )
    if passes_on(order) and order.may_start_empty:
        return Begin.GO, "it passes traffic on, for which it needs no data"
    former = member is not None and member.cluster_token != order.cluster_token
    if order.survivor and data and former:
        return Begin.REBUILD, "the cluster is built anew from this machine's data"
    if order.join_existing:
        return _may_join(order, member, data=data)
    if not data:
        led = member is not None and member.led and member.cluster_token == order.cluster_token
        if order.may_start_empty and not led:  # the portal may not have heard yet that the cluster came to be
            return Begin.GO, "a new member"
        return Begin.OUTSIDE, (
            "the data directory of this router is empty although its cluster is known: an emptied member could vote twice; "
            "remove it from the cluster and add it again through a healthy router: Rebuild router, or a deployment's step Deploy routers"
        )
    if member is None:
        return Begin.GO, "its data is here"
    anew = not member.led and order.may_start_empty
    if former:
        if anew:
            return Begin.DISCARD, "it never was part of a cluster"
        (name, generation), (ordered, newer) = cluster_of(member.cluster_token), cluster_of(order.cluster_token)
        if name != ordered:
            return Begin.FOREIGN, (
                f"this router's data belongs to the cluster {member.cluster_token}, but {order.cluster_token} is ordered: "
                "bring its own data back; or, when nobody needs these, delete the folder router/data in the agent's home"
            )
        if order.may_start_empty and newer > generation:  # where it was built anew from a survivor, nobody else may
            return Begin.DISCARD, f"they are of generation {generation} of its cluster, which has ended: generation {newer} is founded"
        return Begin.OUTSIDE, (
            f"this router's data is of generation {generation} of its cluster, but generation {newer} is ordered, which was built anew "
            "without it: a deployment's step Deploy routers takes it in again, with the new cluster's data"
        )
    if member.removed:
        return Begin.OUTSIDE, "the others have removed this router from the cluster: a deployment's step Deploy routers takes it in again"
    if anew and member.members != order.members:
        return Begin.DISCARD, "it never was part of a cluster"
    return Begin.GO, "its data is here"


def _may_join(order: RouterOrder, member: Member | None, *, data: bool) -> tuple[Begin, str]:
    """A running cluster has added this machine under an id of its own; that member starts empty once, and never again."""
    if member is None or member.joined != order.member_id:
        return (Begin.DISCARD, "its data are of a member that the cluster has removed") if data else (Begin.GO, "added to the cluster")
    if member.removed:
        return Begin.OUTSIDE, "the others have removed this router from the cluster again"
    if data:
        return Begin.GO, "its data is here"
    return Begin.OUTSIDE, f"its data directory is empty although it has joined as member {order.member_id}: it must be added again"


def command(
    binary: str,
    order: RouterOrder,
    *,
    listen_host: str,
    client_port: int,
    data: str,
    tls: TlsFiles,
    revoked: str,
    rebuilding: bool = False,
) -> list[str]:
    """The etcd command line of one member. Peers and clients alike must show a certificate of the environment that is not revoked."""
    host = f"[{listen_host}]" if ":" in listen_host else listen_host
    client = f"https://127.0.0.1:{client_port}"
    network = f",https://{host}:{order.peer_port + 1}" if order.gateways and not rebuilding else ""
    return [
        binary,
        f"--name={order.name}",
        f"--data-dir={data}",
        f"--listen-peer-urls=https://{host}:{order.peer_port}",
        f"--initial-advertise-peer-urls={order.members[order.name]}",
        f"--listen-client-urls={client}{network}",
        f"--advertise-client-urls={client}",
        "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in sorted(order.members.items())),
        f"--initial-cluster-token={order.cluster_token}",
        f"--initial-cluster-state={'existing' if order.join_existing else 'new'}",
        f"--heartbeat-interval={order.heartbeat_ms}",
        f"--election-timeout={order.election_ms}",
        f"--cert-file={tls.machine}",
        f"--key-file={tls.machine}",
        f"--trusted-ca-file={tls.authority}",
        f"--client-crl-file={revoked}",
        "--client-cert-auth=true",
        f"--peer-cert-file={tls.machine}",
        f"--peer-key-file={tls.machine}",
        f"--peer-trusted-ca-file={tls.authority}",
        f"--peer-crl-file={revoked}",
        "--peer-client-cert-auth=true",
        "--pre-vote=true",
        "--strict-reconfig-check=true",
        "--auto-compaction-mode=periodic",
        f"--auto-compaction-retention={upkeep.HISTORY_KEPT}",
        f"--quota-backend-bytes={upkeep.QUOTA_BYTES}",
        f"--max-txn-ops={TRANSACTION_OPERATIONS}",
        "--logger=zap",
        "--log-outputs=stderr",
        "--log-level=info",
        *(["--force-new-cluster"] if rebuilding else []),
    ]


def gateway_command(binary: str, order: RouterOrder, client_port: int) -> list[str]:
    """A router without a vote: it passes its machine's traffic on to those that vote. TLS goes through; it holds no key."""
    voters = [f"[{host}]:{port + 1}" if ":" in host else f"{host}:{port + 1}" for host, port in addresses(order).values()]
    listen = f"--listen-addr=127.0.0.1:{client_port}"
    return [binary, "gateway", "start", listen, f"--endpoints={','.join(voters)}", "--retry-delay=1s"]


def network_ports(order: RouterOrder) -> list[int]:
    """Where other machines reach it."""
    return [] if passes_on(order) else [order.peer_port, order.peer_port + 1] if order.gateways else [order.peer_port]


def passes_on(order: RouterOrder) -> bool:
    return order.name not in order.members


@dataclass(frozen=True)
class Health:
    """What a member says of itself."""

    state: RouterState
    reason: str
    member_id: str = ""
    cluster_id: str = ""
    learner: bool = False


def judge(status: dict[str, Any] | None, health: bool, alarms: list[str], answered: str) -> Health:
    """From etcd's answers. `status`: of /v3/maintenance/status; `health`: of /health, which reads through the majority."""
    if status is None:
        return Health(RouterState.STARTING, answered)
    header = status.get("header", {})

    def said(state: RouterState, reason: str, *, learner: bool = False) -> Health:
        return Health(state, reason, f"{int(header.get('member_id', 0)):x}", f"{int(header.get('cluster_id', 0)):x}", learner)

    if "NOSPACE" in alarms:
        return said(RouterState.FAILED, "its database is full (alarm NOSPACE), so nobody can lead: its agent empties it")
    if status.get("isLearner"):
        return said(RouterState.STARTING, "it catches up with the others before it gets its vote", learner=True)
    if int(status.get("leader", 0)) == 0:
        return said(RouterState.NO_MAJORITY, "it sees no majority of the cluster's members")
    if not health:
        return said(RouterState.NO_MAJORITY, "it does not get an answer from a majority of the cluster's members")
    return said(RouterState.RUNNING, "")


def ahead_of(order: RouterOrder | None, ran: RouterOrder | None, member: Member | None) -> RouterOrder | None:
    """`ran`, under which the member last ran, where that is of a later generation of the very cluster that is ordered, and it led there:
    the portal was restored from before that was built anew. None: the order counts."""
    if order is None or ran is None or member is None or not member.led or ran.cluster_token != member.cluster_token:
        return None
    ordered, led = cluster_of(order.cluster_token), cluster_of(member.cluster_token)
    return ran if led[0] == ordered[0] and led[1] > ordered[1] else None


def needs_restart(launched: RouterOrder, order: RouterOrder, *, led: bool) -> bool:
    """Does a running member have to be restarted for this order. `led`: it was part of a cluster, which then keeps its own list of
    the others' addresses."""

    def essence(of: RouterOrder) -> RouterOrder:
        members = {name: url for name, url in of.members.items() if name == of.name or not led}
        return msgspec.structs.replace(
            of, members=members, join_existing=False, may_start_empty=True, witness=False, survivor=False, disabled={}
        )

    return essence(launched) != essence(order)


def trusts_nobody(read: str, roots: Collection[str]) -> bool:
    """Has a running etcd read none of the authorities that count now (RouterLaunch.authority, certificate.roots_of). While it has read one
    of them it need not restart: certificates of the others carry that one's word for them."""
    return set(read.split()).isdisjoint(roots)


def waits_for_its_turn(launched: RouterOrder, order: RouterOrder) -> bool:
    """Is this a restart that all routers are ordered at once, and that must not cost the majority. What concerns this router alone
    (its address, its membership) the portal orders one router after another."""

    def own(of: RouterOrder) -> tuple[object, ...]:
        return of.cluster_token, of.member_id, of.members.get(of.name)

    return len(order.members) > 1 and not passes_on(order) and own(launched) == own(order)
