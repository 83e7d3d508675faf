"""The wire: everything that crosses between portal, agent, keeper and runtime process, and its enums. No Django.

There is one definition (docs/architecture.md, rule 8); models and serializers borrow the enums. Shapes are `msgspec` structs:
`decode(Report, body)` is strict and its error names the field. All durations are seconds (float), all moments RFC 3339 UTC strings
unless a name says `_boot` (seconds on CLOCK_BOOTTIME of the machine that wrote it).

    portal -> agent     Orders      (GET  /agent/v1/orders/?after=<version>&wait=<seconds>, and the answer to a report)
    agent  -> portal    Report      (POST /agent/v1/report/)
    agent  -> portal    JoinRequest -> JoinAnswer (POST /agent/v1/join/)
    agent  -> portal    CertificateRequest -> CertificateAnswer (POST /agent/v1/certificate/)
    portal -> agent     a Bundle's bytes by digest (GET /agent/v1/bundles/<digest>/)
    agent  -> keeper    KeeperCommand, keeper -> agent KeeperNews   (JSON lines on the keeper's unix socket)
    keeper -> process   ProcessCommand, process -> keeper ProcessNews (JSON lines on the socket inherited as CONTROL_FD_ENV)
"""

import hashlib
import struct
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

PROTOCOL_VERSION = 1
GENERATION_STEP = 10**12  # epoch = generation of the cluster * GENERATION_STEP + revision of the leader key
MOST_KEPT = 2_000  # events, ends and outcomes of each kind that wait for an answer, in a keeper and in an agent
RENEW_AFTER = 2 / 3  # of a certificate's life, after which its machine asks for another one …
RENEWAL_LATE = timedelta(days=3)  # … and after so long more it was not renewed for a reason
MOST_FAILOVER_GROUPS = 100  # of one runtime: one transaction of the router renews them all; 150 lost permits on a machine under load

# --------------------------------------------------------------------------------------------------------------------- enums


class Told(StrEnum):
    """What one side tells the other. A word that only a newer side knows is read as READ_AS says, so that versions may be mixed: it is
    shown or refused by name, and everything else of the message is taken."""

    @classmethod
    def _missing_(cls, value: object) -> "Told | None":
        return cls.__members__[READ_AS[cls.__name__]] if isinstance(value, str) else None


READ_AS = {
    "Status": "UNKNOWN",
    "State": "PARTLY",  # neither all nor none, as far as can be said here: an alarm, for a person to look
    "Preference": "NONE",
    "Cause": "OTHER",
    "RuntimeState": "OTHER",
    "RouterState": "OTHER",
    "MemberAct": "OTHER",  # refused: see members.make
    "RequestKind": "OTHER",  # left to another member's agent, then refused: see loop.Agent._place
    "IsolationPolicy": "STOP",  # the one that never runs twice
    "RequestStatus": "PENDING",  # nothing is known of its end
    "CommandStatus": "RUNNING",
    "ComponentKind": "OTHER",  # the flow cannot run here and says so
    "ItemAct": "OTHER",  # answered with a refusal
    "LogLevel": "INFO",
    "ReachOutcome": "FAILED",
}
UPGRADE = "this machine's agent is older than the portal and does not know what is asked: upgrade it"


class Status(Told):
    """Failover status of a member (docs/failover.md, Statuses)."""

    LEADER = "leader"
    FOLLOWER = "follower"
    DISABLED = "disabled"
    SINGLE_NODE = "single-node"
    ISOLATED = "isolated"
    UNKNOWN = "unknown"  # only the portal says this: the agent is silent, or reported a lower epoch


class State(Told):
    """Do the inbounds of the group really run in this runtime: all, none, or some (an alarm)."""

    ON = "on"
    OFF = "off"
    PARTLY = "partly"


class Preference(Told):
    LEADER = "leader"
    BACKUP = "backup"
    NONE = "none"


class Cause(Told):
    """Why a leadership changed. A closed vocabulary; `runtimes.history` adds what the former leader's machine tells afterwards."""

    FIRST = "first"  # nobody led before
    CRASH = "crash"  # proven death: the keeper saw the process end
    HANG = "hang"  # the former leader's process stood still: its keeper killed it, or it woke up too late
    SILENCE = "silence"  # the leader's session stood still for a full TTL, and its machine has not told why (yet)
    LOST_MAJORITY = "lost-majority"  # the former leader had no answer from a majority of the routers
    POWER_OFF = "power-off"  # the former leader's machine has booted anew since
    RELEASE = "release"  # the leader stopped cleanly
    NOT_READY = "not-ready"  # one of the leader's flows could not work there any more, and another member's could
    SWITCH = "switch"  # Play or Stop by a person
    BALANCE = "balance"
    DEPLOY = "deploy"  # handed over before its runtime was redeployed
    DISABLE = "disable"
    FAILBACK = "failback"  # returned to the preferred leader by the group's policy
    EXPIRY = "expiry"  # returned because a switch by hand was for a time only
    OTHER = "other"  # one that a newer machine told


class RuntimeState(Told):
    """What a runtime's process is doing."""

    STOPPED = "stopped"  # as wished
    STARTING = "starting"
    READY = "ready"
    HANGING = "hanging"  # its process is there but has not answered for seconds: what it last said is no fact any more
    BACKOFF = "backoff"  # exited three times in a row without having been ready; restarts later
    FAILED = "failed"  # cannot be started: see the reason (a bundle that does not verify, say)
    OTHER = "other"  # one that a newer machine told


class RouterState(Told):
    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"  # its etcd member answers and knows a majority
    NO_MAJORITY = "no-majority"
    FAILED = "failed"  # a port taken, a refused etcd version, an emptied data directory: see the reason
    OTHER = "other"  # one that a newer machine told


class MemberAct(Told):
    """What is asked of a healthy router: one change of the cluster's members (etcd's member API)."""

    ADD = "add"  # as a learner: it has no vote until it is promoted
    PROMOTE = "promote"
    REMOVE = "remove"
    UPDATE = "update"  # another peer URL
    OTHER = "other"  # one that a newer portal asks for


class RequestKind(Told):
    SWITCH = "switch"
    DISABLE = "disable"
    ENABLE = "enable"
    POLICY = "policy"  # what the members do without a majority
    OTHER = "other"  # one that a newer portal asks for


class IsolationPolicy(Told):
    """What a member does that has lost the majority of the routers (docs/failover.md, Lost majority)."""

    STOP = "stop"
    RUN_ALONE = "run-alone"  # it goes on by itself: on both sides of a cut link, two may consume at once


# How a member's reason begins that has lost the majority; what follows is the cause, to which its agent knows peer, address and time.
ISOLATED_BECAUSE = "isolated: "
ALONE_BECAUSE = "runs alone, as the group's isolation policy says: "
DRAINING = "draining"  # how it begins while a member lets end what is in flight, for as long as the drain limit


# How the reason of a router begins that runs well and is to restart: what follows is what it waits for.
RESTART_WAITS = "it is to restart, and waits: "


class RequestStatus(Told):
    """The life of one wish for a group: written by the portal, carried by an agent, decided in etcd."""

    PENDING = "pending"  # no agent has carried it yet
    RUNNING = "running"  # it stands in control/<group>
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"


class CommandStatus(Told):
    """The life of one command on a machine."""

    PENDING = "pending"  # no agent has taken it yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # exit status 0
    FAILED = "failed"  # another one, timed out, not on the machine's list, or unknown: see the reason
    CANCELLED = "cancelled"  # only the portal says this: the order was taken back


class ReachOutcome(Told):
    """What became of one machine's part in the test of an Internal IP and Failover port."""

    # of the machine whose address it is
    LISTENING = "listening"  # it waits there for the others
    ROUTER = "router"  # its router runs there already, and answers the others
    TAKEN = "taken"  # another program listens there
    NOT_HERE = "not-here"  # no address of this machine, or a port it may not have
    # of the others
    REACHABLE = "reachable"
    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    WRONG_ANSWER = "wrong-answer"  # somebody answers, and not that machine
    NO_WAY = "no-way"  # no route, or an unknown name
    FAILED = "failed"  # of either: the test itself could not be made


class ComponentKind(Told):
    FILE = "file"
    QUEUE = "queue"
    LOG = "log"
    COMMAND = "command"
    SQL = "sql"
    HTTP = "http"
    TIMER = "timer"
    SFTP = "sftp"
    AMQP = "amqp"
    OTHER = "other"  # one of a newer portal


class ItemAct(Told):
    """What people do with the failed items of a flow."""

    LIST = "list"
    VIEW = "view"
    RETRY = "retry"
    DISCARD = "discard"
    OTHER = "other"  # one that a newer portal asks for


class LogLevel(Told):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of every message. Unknown fields are ignored, so that a newer side may add some."""


# -------------------------------------------------------------------------------------------------------------------- bundles


class Component(Wire, frozen=True):
    """An inbound or outbound with its settings, every placeholder already replaced.

    file inbound   {"folder": absolute path, "error_folder"?: path, "poll_seconds"?: "0.1"}
    file outbound  {"folder": path, "receipts"?: path of a JSON-lines file that gets one line per delivery}
    queue in/out   {"url": redis://…, "queue": name, "prefix": key prefix}
    log outbound   {}
    every other kind: see its module in runtimes/process/connectors, and docs/create.md
    """

    kind: ComponentKind
    settings: dict[str, str] = {}


class FlowSpec(Wire, frozen=True):
    id: str  # stable across releases
    name: str
    version: str  # "1.4.0"
    inbound: Component
    outbound: Component
    group: str | None = None  # GroupSpec.id; None: the flow starts and stops by itself
    auto_start: bool = True  # only for an ungrouped flow: False puts it among the order's stopped_flows when it is first ordered


class GroupSpec(Wire, frozen=True):
    """A group of inbounds in this runtime. `members` are the runtime keys of all siblings, this one included; fewer than two, or
    `failover` false, makes the runtime a single node for it."""

    id: str  # stable: a rename keeps it
    name: str
    failover: bool
    members: list[str]

    @property
    def fails_over(self) -> bool:
        """Does one of its members run it at a time: then it runs with a router or not at all."""
        return self.failover and len(self.members) > 1


class TimingProfile(StrEnum):
    """How fast an environment fails over; each environment has one (docs/failover.md, Timing profiles)."""

    LAN = "lan"
    FAST_LAN = "fast-lan"
    WAN = "wan"


class Timing(Wire, frozen=True):
    """The constants of a failover profile. Seconds; etcd's in milliseconds."""

    ttl: float = 1.0
    renewal: float = 0.2
    guard: float = 0.2
    request_timeout: float = 0.3
    drain: float = 5.0
    etcd_heartbeat_ms: int = 50
    etcd_election_ms: int = 300


PROFILES = {
    TimingProfile.LAN: Timing(),
    TimingProfile.FAST_LAN: Timing(ttl=0.5, renewal=0.1, guard=0.1, request_timeout=0.15, etcd_heartbeat_ms=20, etcd_election_ms=150),
    TimingProfile.WAN: Timing(ttl=4.0, renewal=1.0, guard=0.8, request_timeout=1.5, etcd_heartbeat_ms=250, etcd_election_ms=1500),
}
LONGEST_TTL = max(timing.ttl for timing in PROFILES.values())  # so long may the permit of an unknown program last


class BundleContent(Wire, frozen=True):
    """What one runtime runs: immutable, addressed by the SHA-256 of its encoded bytes."""

    environment: str  # slug, for people
    machine: str
    connector: str
    release: int  # number
    flows: list[FlowSpec]
    groups: list[GroupSpec]
    timing: Timing = Timing()  # of the environment's profile when this was deployed; members of a group may differ while it changes
    secrets: list[str] = []  # values among the settings above that no log line, reason or error folder may show
    cluster: str = ""  # the environment's, like no other's: two environments share no bundle ("": made before it was said)


# ---------------------------------------------------------------------------------------------------------- portal <-> agent


class JoinRequest(Wire, frozen=True):
    token: str  # one-time
    agent_version: str
    attempt: str = ""  # a secret of the agent, kept while it joins: who used the token may ask again for an answer that got lost
    protocol_version: int = PROTOCOL_VERSION


class JoinAnswer(Wire, frozen=True):
    credential: str  # bearer of every later call; shown once
    machine: str
    environment: str
    project: str


class CertificateRequest(Wire, frozen=True):
    """The machine's private key never leaves it: the agent asks for a certificate of its public key, with its credential."""

    request: str  # certificate signing request (PEM), EC P-256; only its public key counts


class CertificateAnswer(Wire, frozen=True):
    certificate: str  # PEM; after it, when the authority was renewed, what makes it good for who trusts only the former one
    authority: str  # Trust.authority


class Trust(Wire, frozen=True):
    """Who may speak to the environment's routers (docs/decisions/0030-certificates.md)."""

    authority: str  # certificate (PEM); while it is being renewed, the new one's and after it the former one's
    revoked: str  # revocation list (DER, base64)
    names: list[str]  # that this machine's own certificate must bear
    taken_back: list[str] = []  # machines whose certificates the list has for less than a day: their connections are to end


class TlsFiles(Wire, frozen=True):
    """Paths of this machine's certificate files; read anew when they change."""

    authority: str  # PEM
    machine: str  # PEM: private key and certificate in one file, so that both are replaced in one stroke


class ClusterMember(Wire, frozen=True):
    """A line of etcd's member list. `name` is empty until it has started once."""

    id: str  # hexadecimal, never used twice
    name: str
    url: str  # peer URL
    learner: bool = False  # it follows and has no vote


class MemberChange(Wire, frozen=True):
    """One change, to be made through this machine's router as long as the cluster's members are still those `listed`."""

    id: str
    act: MemberAct
    listed: list[ClusterMember]
    member: str = ""  # id; of promote, remove and update
    url: str = ""  # of add and update
    valid_seconds: float = 10.0  # counted by the agent from receipt


class RouterOrder(Wire, frozen=True):
    """One etcd member. `members` maps member name (the machine's) to its peer URL, identical on all machines; a machine that is not among
    them only passes its runtimes' traffic on (`etcd gateway`)."""

    name: str
    peer_host: str
    peer_port: int
    cluster_token: str
    members: dict[str, str]
    witness: bool = False
    member_id: str = ""  # under which a running cluster has added it; empty: it founded the cluster
    join_existing: bool = False  # it was added and did not run since: it starts empty, once, and whatever data is here goes
    may_start_empty: bool = True  # False once the cluster is known: an empty data directory is refused
    gateways: bool = False  # other machines reach this member through the network, at the port after its peer port, to pass traffic on
    survivor: bool = False  # the cluster of this token is to be built anew from this machine's data, whose majority is lost
    disabled: dict[str, list[str]] = {}  # survivor only: members (runtime keys) by group that stay disabled, whatever the data say
    heartbeat_ms: int = 50
    election_ms: int = 300


class RuntimeOrder(Wire, frozen=True):
    key: str  # "<machine>.<connector>": unique and stable within the environment
    connector: str
    running: bool
    digest: str | None  # of the bundle to run; None: nothing was deployed yet
    release: int | None
    restarts: int = 0  # grows by one for every ordered restart
    preferences: dict[str, Preference] = {}  # by group id
    stopped_flows: list[str] = []  # ids of ungrouped flows that shall not run: a person stopped them, or they do not start by themselves


class GroupRequest(Wire, frozen=True):
    """One wish for a group; every member machine's agent gets it, the first to write it to control/<group> carries it."""

    id: str
    kind: RequestKind
    group: str
    machine: str | None  # switch: the candidate (None: any ready follower); disable, enable: whose member; policy: None
    expected_epoch: int | None  # switch only
    cause: Cause
    actor: str  # who asked, for people: "operator" or "deployment 12"
    valid_seconds: float  # counted by the agent from receipt
    policy: IsolationPolicy | None = None  # policy only


class Inquiry(Wire, frozen=True):
    """A question about the failed items of a flow, or an act on some of them. Answered by the agent of that machine, once."""

    id: str
    runtime: str  # key
    flow: str  # id
    act: ItemAct
    keys: list[str] = []  # of FailedItem; view: exactly one; retry and discard: empty for every one
    actor: str = ""


class InquiryAnswer(Wire, frozen=True):
    """What is there after the act, whatever the act was."""

    id: str
    problem: str = ""  # one sentence; empty: done
    total: int = 0
    items: list["FailedItem"] = []  # the newest
    content: str = ""  # view: base64 of the first bytes, secrets masked
    size: int = 0  # view: bytes of the whole item
    acted: int | None = None  # retry and discard: on how many items; None: an older agent does not say
    done: list["FailedItem"] = []  # retry and discard: those items, of many the first


class CommandOrder(Wire, frozen=True):
    """Run once the command that the machine's own list (commands.toml in the agent's home) has under this name. An order that is gone
    from the orders ends the command."""

    id: str
    name: str
    timeout_seconds: float


class ReachOrder(Wire, frozen=True):
    """Try Internal IP : Failover port of `machine`: it listens there for `valid_seconds` from receipt, the others connect. Both sides prove
    with the secret, which only they have, that it is this test."""

    id: str
    machine: str  # whose address it is
    host: str
    port: int
    secret: str
    router: bool = False  # the machine's router answers there, by mutual TLS
    valid_seconds: float = 10.0


class ReachAnswer(Wire, frozen=True):
    """Repeated until acknowledged. An agent that does not know the order gives none."""

    id: str
    outcome: ReachOutcome
    reason: str = ""
    seconds: float | None = None  # to connect; only of a reachable one
    at: str = ""


class Orders(Wire, frozen=True):
    version: int  # grows with every change for this machine
    namespace: str  # etcd key prefix of the environment: "/baton/<id>/"
    generation: int = 1  # of the cluster; epoch = generation * 10**12 + revision
    timing: Timing = Timing()
    trust: Trust | None = None  # None: no machine of the environment has asked for a certificate yet
    router: RouterOrder | None = None
    member_change: MemberChange | None = None
    runtimes: list[RuntimeOrder] = []
    requests: list[GroupRequest] = []
    inquiries: list[Inquiry] = []
    commands: list[CommandOrder] = []
    reach: list[ReachOrder] = []


class RouterReport(Wire, frozen=True):
    state: RouterState
    reason: str = ""
    member_id: str = ""
    cluster_id: str = ""
    etcd_version: str = ""
    client_port: int | None = None
    warning: str = ""  # "etcd 3.5.1: for a one-machine demonstration only"
    address: str = ""  # peer URL at which its member runs
    cluster_token: str = ""  # of the order that its member runs under
    learner: bool = False  # it runs and has no vote yet
    trusts: list[str] = []  # SHA-256 of the PEM of each authority's certificate that the running etcd has read
    outside: bool = False  # it is no member of the ordered cluster: its data are gone, or a removed member's, or a former cluster's
    ordered_as: str = ""  # member_id of the order that all this was said under
    members: list[ClusterMember] = []  # as it lists them
    members_at: int = 0  # raft index at which it first saw this list: of two lists the one with the higher index is not older
    free_port: int | None = None  # where the ordered port is taken by another program: one that is free on this machine
    change: str = ""  # id of the last MemberChange it tried
    change_error: str = ""  # why it was not made; empty: it was


class PeerReport(Wire, frozen=True):
    """Can this machine open a connection to a sibling's Internal IP : Failover port."""

    machine: str
    address: str  # host:port
    reachable: bool
    since: str
    error: str = ""
    revoked: bool = False  # who answers there bears a certificate that was taken back


class GroupReport(Wire, frozen=True):
    group: str
    status: Status
    state: State
    reason: str  # one sentence, as decided by the process or said by the agent for a process that is not there
    epoch: int = 0  # of the leadership this member knows of; 0 for a single node
    leader: str | None = None  # runtime key this member believes leads
    ready: bool = False
    since: str = ""  # of this status
    last_activity: str = ""  # when an inbound of the group last took something
    disabled: list[str] = []  # runtime keys, as control/<group> says
    open_request: str | None = None
    isolation: IsolationPolicy = IsolationPolicy.STOP  # as control/<group> says, or as this member remembers it
    ttl: float | None = None  # seconds, of the profile its process runs under; None: no process, or a single node


class FlowReport(Wire, frozen=True):
    flow: str
    name: str
    on: bool
    group: str | None = None
    reason: str = ""  # why it is off, or what it last failed at
    taken: int = 0  # items since the process started
    delivered: int = 0
    failed: int = 0
    last_activity: str = ""
    last_poll: str = ""  # when its source last answered, to 5 s
    waiting: int | None = None  # items in its source that nobody took yet; None: not known here
    pending: int | None = None  # taken, not yet delivered
    kept: int | None = None  # failed items that are kept; None: not known here
    again: int | None = None  # those that shall be tried again, and wait until this flow runs here
    silent_since: str = ""  # On, and its source has not answered since then: longer than it should; empty otherwise
    kept_at: str = ""  # when `kept` and `again` were counted, where the process does not run; empty: they are of this report
    undelivered_since: str = ""  # On, and its target took nothing of what was offered since then: longer than it should; empty otherwise


class FailedItem(Wire, frozen=True):
    """An item that was moved aside: what people may see of it without its content."""

    key: str  # by which it is asked for
    item: str  # message id
    name: str
    size: int
    reason: str
    tries: int
    at: str
    epoch: int = 0
    machine: str = ""


class RuntimeReport(Wire, frozen=True):
    key: str
    state: RuntimeState
    reason: str = ""
    pid: int | None = None  # of the runtime process, in the host's numbering
    started_at: str = ""
    starts: int = 0  # since the agent's home was made
    restarts: int = 0  # the order's counter that this process was started under
    digest: str | None = None  # of the bundle the process runs
    release: int | None = None
    groups: list[GroupReport] = []
    flows: list[FlowReport] = []


class RequestOutcome(Wire, frozen=True):
    id: str
    status: RequestStatus
    code: str = ""  # "busy", "stale", "not-ready", "no-majority", "drain-limit", "disabled"
    reason: str = ""


class CommandReport(Wire, frozen=True):
    """Repeated until the order is gone; `lines` of its output are repeated until acknowledged."""

    id: str
    status: CommandStatus
    exit_status: int | None = None
    reason: str = ""
    first: int = 0  # index of the first of `lines` within the whole output
    lines: list[str] = []


class LeadershipEvent(Wire, frozen=True):
    """Written by the new leader when its inbounds are On. Unique by (group, epoch)."""

    group: str
    epoch: int
    runtime: str
    previous: str | None
    cause: Cause
    actor: str = ""
    at: str = ""
    at_boot: float | None = None  # the same instant on CLOCK_BOOTTIME, which no setting of the clock moves
    boot_id: str = ""  # of the kernel whose clock that is
    detection_seconds: float | None = None  # from the last sign of the old leader to the take
    gap_seconds: float | None = None  # from the last On of the old leader to On here


class LeadershipEnd(Wire, frozen=True):
    """How a leadership ended that was not handed over, told by the former leader's process or keeper. Unique by (group, epoch)."""

    group: str
    epoch: int
    runtime: str
    cause: Cause  # CRASH, HANG or LOST_MAJORITY; RELEASE or DISABLE: given up to nobody
    reason: str = ""
    at: str = ""
    at_boot: float | None = None
    boot_id: str = ""


class RanAlone(Wire, frozen=True):
    """A member runs alone, or did, as its group's isolation policy says: another one may have consumed at the same time. Told when it
    begins, and whole when it ends."""

    group: str
    runtime: str
    reason: str
    since: str
    until: str = ""  # empty: it goes on
    since_boot: float | None = None
    until_boot: float | None = None
    boot_id: str = ""


class LogLine(Wire, frozen=True):
    runtime: str  # key, "router" or "agent"
    at: str
    level: LogLevel
    text: str


class Report(Wire, frozen=True):
    agent_version: str
    boot_id: str
    started_at: str  # of the agent process
    orders_version: int  # newest version taken over into desired state
    sequence: int  # grows by one per report of this agent process; an older one is ignored
    router: RouterReport | None = None
    peers: list[PeerReport] = []
    runtimes: list[RuntimeReport] = []
    outcomes: list[RequestOutcome] = []  # repeated until acknowledged
    events: list[LeadershipEvent] = []  # repeated until acknowledged
    ends: list[LeadershipEnd] = []  # repeated until acknowledged
    alone: list[RanAlone] = []  # repeated until acknowledged
    at: str = ""  # when it was made, by the machine's clock: tells how far that is off
    at_boot: float | None = None  # the same on CLOCK_BOOTTIME of `boot_id`
    logs: list[LogLine] = []
    answers: list[InquiryAnswer] = []  # repeated until acknowledged
    commands: list[CommandReport] = []
    reach: list[ReachAnswer] = []
    suggested_address: str = ""
    suggested_port: int | None = None
    listed_commands: list[str] | None = None  # names on the machine's own list that would be run; None: its agent is too old to tell


class ReportAnswer(Wire, frozen=True):
    """The portal has stored the report: its outcomes, events, ends and logs need not be sent again."""

    accepted: bool
    orders: Orders


# ------------------------------------------------------------------------------------------------------- inside one machine

CONTROL_FD_ENV = "BATON_CONTROL_FD"  # the process's end of a unix stream socketpair with its keeper; JSON lines both ways
LIFELINE_FD_ENV = "BATON_LIFELINE_FD"  # read end of the stack runner's pipe: end of file means "end your tree"
PRESENCE_FD_ENV = "BATON_PRESENCE_FD"  # write end a keeper holds while it lives, so that the runner knows when all are gone

# The permit page: a file of PERMIT.size bytes mapped by process and keeper. Written by the process before its inbounds go On and
# at each renewal; read by the keeper's watchdog: `on` and CLOCK_BOOTTIME past `permit_until` means the process hangs -> kill its tree.
PERMIT = struct.Struct("<dI4x")  # permit_until_boot (earliest end among the groups that are On), on (0 or 1)


class RuntimeConfig(Wire, frozen=True):
    """`config.json` in a runtime's folder: all a process needs. Launched as `python -m runtimes.process <config.json>`."""

    key: str
    environment: str
    machine: str
    connector: str
    launch: str  # unique per started process; session ids are "<launch>:<n>", so that a keeper knows whose session it deletes
    bundle: str  # path of the verified bundle file
    digest: str
    release: int
    etcd: str | None  # client URL of this machine's router; None: the machine has no router
    tls: TlsFiles  # what the router asks its clients for
    namespace: str
    generation: int
    timing: Timing
    data: str  # the runtime's own folder, kept across launches (error folders default to a place below it)
    permit: str  # path of the permit page
    preferences: dict[str, Preference] = {}
    stopped_flows: list[str] = []
    outside: str = ""  # why this machine is no part of the environment's cluster any more, so that others may lead: it never runs alone


SIGN_OF_LIFE_SECONDS = 0.9  # a process says something to its keeper at least once per second


CANNOT_RUN = 2  # exit status of a process that cannot be run as configured; it has said why before


class ProcessNews(Wire, frozen=True):
    """process -> keeper -> agent. `status` is the whole picture and replaces the one before; events pile up until acknowledged."""

    ready: bool | None = None
    reason: str = ""
    groups: list[GroupReport] | None = None
    flows: list[FlowReport] | None = None
    event: LeadershipEvent | None = None
    ended: LeadershipEnd | None = None
    alone: RanAlone | None = None
    outcome: RequestOutcome | None = None  # how a request in control/<group> ended, said by the member that closed it
    # Nothing set: a sign of life, sent when nothing was said for SIGN_OF_LIFE_SECONDS.


class ProcessCommand(Wire, frozen=True):
    """agent -> keeper -> process."""

    preferences: dict[str, Preference] | None = None
    stopped_flows: list[str] | None = None
    outside: str | None = None  # as RuntimeConfig.outside
    stop: bool = False  # give up leadership, stop inbounds, drain, end the session, exit 0


class KeeperCommand(Wire, frozen=True):
    to_process: ProcessCommand | None = None
    stop_within: float | None = None  # SIGTERM, then SIGKILL of the whole tree after so many seconds; the keeper then exits
    acknowledge: int | None = None  # events, ends and outcomes up to this number were stored by the agent


class KeeperNews(Wire, frozen=True):
    """Sent whole on connect, after every change, and at least every SIGN_OF_LIFE_SECONDS."""

    launch: str
    keeper_pid: int
    pid: int | None  # None once the tree is empty
    started_at: str
    exit_reason: str = ""  # "exited with status 3", "killed by signal 9", "killed by its keeper: permit ended 40 ms ago, still On"
    was_ready: bool = False
    ready: bool = False
    reason: str = ""
    speaks: bool = False  # its keeper says something every SIGN_OF_LIFE_SECONDS, so that its silence means something
    hangs: str = ""  # "the process of external02.erp has not answered for 3 s (pid 4711)"; empty as soon as it speaks again
    groups: list[GroupReport] = []
    flows: list[FlowReport] = []
    pending: list[tuple[int, ProcessNews]] = []  # numbered events, ends and outcomes not yet acknowledged
    log: list[LogLine] = []  # new lines since the last news on this connection


# ------------------------------------------------------------------------------------------------------------ reading, writing

T = TypeVar("T")

# msgspec learns a class when it first decodes one, and two threads that do so at the same time crash the interpreter (seen with 0.22 when
# three agents reported in the portal's first moment). Learned here, once, under Python's import lock.
for _kind in Wire.__subclasses__():
    msgspec.json.Decoder(_kind)


def encode(message: Any) -> bytes:
    """One message as JSON bytes without line breaks; field order is the class's, so equal messages give equal bytes."""
    return msgspec.json.encode(message)


def decode(kind: type[T], data: bytes | str) -> T:
    """A message from JSON.

    Raises:
        msgspec.ValidationError: naming the field ("Expected `int`, got `str` - at `$.runtimes[0].pid`").
    """
    return msgspec.json.decode(data, type=kind)


def digest_of(data: bytes) -> str:
    """The address of a bundle: SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def cluster_of(token: str) -> tuple[str, int]:
    """Which cluster a token names (`reports.cluster_token`), and in which generation; 0 of a token that tells none."""
    name, _, generation = token.rpartition("-")
    return (name, int(generation)) if name and generation.isdecimal() else (token, 0)


def epoch_words(epoch: int) -> str:
    """ "1·240": generation and revision, of which an epoch is made (docs/vocabulary.md, Epoch); "–" where there is none."""
    generation, revision = divmod(epoch, GENERATION_STEP)
    return f"{generation}·{revision}" if epoch else "–"


def runtime_key(machine: str, connector: str) -> str:
    """Unique within an environment; machine names have no dot."""
    return f"{machine}.{connector}"
