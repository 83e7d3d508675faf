"""Which routers vote, what their addresses must be like, and how a running cluster comes from one membership to another. Pure;
`runtimes.membership` writes the answers down."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from portal.errors import Invalid
from portal.models import MachineKind

MOST_VOTES = 5  # more etcd members make every write slower and no failure more survivable in practice
WORDS = {2: "Two", 4: "Four"}


@dataclass(frozen=True)
class Electorate:
    """`members`: voting machine -> peer URL. `gateways`: routers that only pass traffic on. `unused`: a witness that is not needed."""

    members: dict[str, str]
    gateways: list[str]
    unused: list[str]


def peer_url(host: str, port: int) -> str:
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def check_addresses(addresses: Mapping[str, tuple[str, int]], serving: Collection[str] = ()) -> None:
    """`serving`: machines whose routers listen on the port after their Failover port too, for those that only pass traffic on.

    Raises Invalid naming the machine, or both machines of an address used twice.
    """
    taken: dict[tuple[str, int], str] = {}
    for machine, (host, port) in sorted(addresses.items()):
        if not host.strip():
            raise Invalid(f"{machine} has no Internal IP: fill in {machine}.failover.internal-ip.", field=f"{machine}.failover.internal-ip")
        if not 1 <= port <= 65535:
            raise Invalid(f"Failover port {port} of {machine} is not between 1 and 65535.", field=f"{machine}.failover.port")
        other = taken.setdefault((host.strip().lower(), port), machine)
        if other != machine:
            raise Invalid(
                f"{other} and {machine} both say {host}:{port}: give each its own Internal IP or Failover port.",
                field=f"{machine}.failover.port",
            )
    for machine in sorted(serving):
        host, port = addresses[machine]
        other = taken.setdefault((host.strip().lower(), port + 1), machine)
        if other != machine:
            raise Invalid(
                f"{machine} listens on {host}:{port + 1} too, the port after its own, for the routers without a vote; {other} has that: "
                "leave a port free after each Failover port.",
                field=f"{other}.failover.port",
            )


@dataclass(frozen=True)
class Electors:
    """Names of machines; see Electorate. `lacks_witness`: the number of votes is even."""

    voters: list[str]
    gateways: list[str]
    unused: list[str]
    lacks_witness: bool


def electors(kinds: Mapping[str, str]) -> Electors:
    """Who votes among these routers (machine -> MachineKind): an even number of external machines needs the witness, an odd one leaves it
    out; of more than five the first five vote."""
    external = sorted(name for name in kinds if kinds[name] == MachineKind.EXTERNAL)
    core = sorted(name for name in kinds if kinds[name] == MachineKind.CORE)
    voters, gateways = external[:MOST_VOTES], external[MOST_VOTES:]
    if voters and len(voters) % 2 == 0:
        voters, core = [*voters, *core[:1]], core[1:]
    return Electors(voters, gateways, core, bool(voters) and len(voters) % 2 == 0)


def electorate(kinds: Mapping[str, str], addresses: Mapping[str, tuple[str, int]]) -> Electorate:
    """The votes (see electors) with their addresses. `kinds`: machine -> MachineKind of every router.

    Raises:
        Invalid: an address used twice, or an even number of votes without a witness.
    """
    found = electors({name: kinds[name] for name in addresses})
    check_addresses(addresses, found.voters if found.gateways else ())
    if found.lacks_witness:
        raise Invalid(
            f"{WORDS[len(found.voters)]} votes cannot decide a majority: {' and '.join(found.voters)} need a witness. "
            "Put a router on a core machine (Design › Architecture, Apply settings) and apply it to this environment.",
        )
    return Electorate({name: peer_url(*addresses[name]) for name in found.voters}, found.gateways, found.unused)


# --------------------------------------------------------------------------------------------- from one membership to another


class Condition(StrEnum):
    """What is known of the router behind a member."""

    WELL = "well"  # it runs at the address that the cluster lists, under that id, and knows a majority
    LEARNS = "learns"  # the same, without a vote yet
    AWAY = "away"  # not known to run so
    LOST = "lost"  # its data are gone, or it never ran: the member that is listed will not come back
    REVOKED = "revoked"  # who answers at its address bears a certificate that was taken back: he is not to read nor to vote


class Act(StrEnum):
    NOTHING = "nothing"  # all is as wished
    WAIT = "wait"  # something is under way
    REFUSE = "refuse"  # a person has to put something right first
    ADD = "add"
    PROMOTE = "promote"
    REMOVE = "remove"
    UPDATE = "update"


@dataclass(frozen=True)
class Voter:
    """A line of the cluster's member list, by the name of its machine (empty: no machine of this environment)."""

    id: str
    machine: str
    url: str
    learner: bool = False


@dataclass(frozen=True)
class Next:
    """The next safe step, and why, in a sentence. `disturbs`: a router that runs well is restarted or leaves: what its machine leads goes
    first."""

    act: Act
    sentence: str
    machine: str = ""
    id: str = ""
    url: str = ""
    disturbs: bool = False


def quorum(votes: int) -> int:
    return votes // 2 + 1


def next_change(listed: Sequence[Voter], wished: Mapping[str, str], conditions: Mapping[str, Condition]) -> Next:
    """The next safe step from the members that the cluster lists to those that are wished (machine -> peer URL).

    One member at a time; what is dead goes first, for nothing can be added beside it; what comes has no vote until it has caught up; what
    runs well is touched only while every other one runs well. After each step, and while a router restarts, a majority runs.
    """
    voters = [member for member in listed if not member.learner]
    well = [voter for voter in voters if conditions.get(voter.machine) == Condition.WELL]
    if len(well) < quorum(len(voters)):
        names = ", ".join(_called(voter) for voter in voters if voter not in well) or "none"
        return Next(Act.REFUSE, f"{len(well)} of {len(voters)} routers run, no majority: nothing can be changed. Not running: {names}.")
    learner = next((member for member in listed if member.learner), None)
    if learner is not None:
        return _with_learner(learner, len(voters), len(well), wished, conditions)
    for voter in voters:
        gone = _will_not_come_back(voter, wished, conditions.get(voter.machine, Condition.AWAY))
        if gone:
            return Next(Act.REMOVE, f"{_called(voter)} leaves the cluster: {gone}.", voter.machine, voter.id)
    return _among_the_well(voters, wished, conditions)


def _called(voter: Voter) -> str:
    return voter.machine or f"member {voter.id}"


def _will_not_come_back(voter: Voter, wished: Mapping[str, str], condition: Condition) -> str:
    """Why a member without a living router is removed; empty: it is not."""
    if condition == Condition.REVOKED:
        return "who answers at its address bears a certificate that was taken back"
    if condition == Condition.LOST:
        return "its data are gone" if voter.machine in wished else "its router is not wished any more"
    if condition == Condition.AWAY and voter.machine not in wished:
        return "its router is not wished any more, and does not run"
    return ""


def _with_learner(learner: Voter, votes: int, well: int, wished: Mapping[str, str], conditions: Mapping[str, Condition]) -> Next:
    """A member that was added and has no vote yet; it may go at any time without a loss."""
    condition, name = conditions.get(learner.machine, Condition.AWAY), _called(learner)
    if wished.get(learner.machine) != learner.url or condition in (Condition.LOST, Condition.REVOKED):
        return Next(Act.REMOVE, f"{name} leaves again before it had a vote.", learner.machine, learner.id)
    if condition != Condition.LEARNS:
        return Next(Act.WAIT, f"{name} was added without a vote: its router has yet to start and to catch up.", learner.machine)
    if well + 1 < quorum(votes + 1):
        return Next(Act.REFUSE, f"{name} has caught up, but with its vote there would be no majority: {well} of {votes} routers run.")
    return Next(Act.PROMOTE, f"{name} has caught up and gets its vote.", learner.machine, learner.id)


def _among_the_well(voters: Sequence[Voter], wished: Mapping[str, str], conditions: Mapping[str, Condition]) -> Next:
    """All that is left: other addresses, members to add, members that run and are not wished."""
    present = {voter.machine: voter for voter in voters}
    moving = [voter for voter in voters if voter.machine in wished and wished[voter.machine] != voter.url]
    coming = sorted(wished.keys() - present.keys())
    leaving = [voter for voter in voters if voter.machine not in wished]
    if not (moving or coming or leaving):
        return Next(Act.NOTHING, "All members are as wished.")
    away = [voter for voter in voters if conditions.get(voter.machine) != Condition.WELL]
    # A router that does not run where it was is moved first: that costs nothing, and may be what brings it back.
    target = next((voter for voter in [*away, *moving] if voter in moving), None)
    others = [voter for voter in away if voter is not target]
    if others:
        names = " and ".join(_called(voter) for voter in others)
        return Next(Act.REFUSE, f"{names} must run before another router is changed: a change now could cost the majority.")
    odd = len(voters) % 2 == 1
    if target is not None and (odd or not (coming or leaving)):
        well = target not in away
        if well and len(voters) > 1 and len(voters) - 1 < quorum(len(voters)):
            return Next(Act.REFUSE, f"{target.machine} cannot move: while it restarts there would be no majority of {len(voters)} routers.")
        url = wished[target.machine]
        taken = next((voter for voter in voters if voter is not target and voter.url == url), None)
        if taken is not None:
            return Next(Act.REFUSE, f"{target.machine} cannot move to {url}: {_called(taken)} is still there. Move it elsewhere first.")
        return Next(Act.UPDATE, f"{target.machine} moves from {target.url} to {url}.", target.machine, target.id, url, disturbs=well)
    if coming:
        name = coming[0]
        taken = next((voter for voter in voters if voter.url == wished[name]), None)
        if taken is None:
            return Next(Act.ADD, f"{name} is added at {wished[name]}, without a vote until it has caught up.", name, url=wished[name])
        if taken not in leaving:
            return Next(Act.REFUSE, f"{name} cannot come to {wished[name]}: {_called(taken)} is still there. Move it elsewhere first.")
        leaving = [taken]
    if not leaving:
        return Next(Act.WAIT, "Nothing can be done now.")
    voter = leaving[0]
    if len(voters) - 1 < 1:
        return Next(Act.REFUSE, f"{_called(voter)} is the only member and cannot leave.")
    return Next(
        Act.REMOVE, f"{_called(voter)} leaves the cluster: its router is not wished any more.", voter.machine, voter.id, disturbs=True
    )
