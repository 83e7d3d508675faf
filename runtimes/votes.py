"""Which routers vote, and what their addresses must be like. Pure; `fleet.assign_routers` writes the answer down."""

from collections.abc import Mapping
from dataclasses import dataclass

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


def check_addresses(addresses: Mapping[str, tuple[str, int]]) -> None:
    """Raises Invalid naming the machine, or both machines of an address used twice."""
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


def electorate(kinds: Mapping[str, str], addresses: Mapping[str, tuple[str, int]]) -> Electorate:
    """Votes are always odd: an even number of external machines needs the witness, an odd one leaves it out; of more than five the first
    five vote. `kinds`: machine -> MachineKind of every router.

    Raises:
        Invalid: an address used twice, or an even number of votes without a witness.
    """
    check_addresses(addresses)
    external = sorted(name for name in addresses if kinds[name] == MachineKind.EXTERNAL)
    core = sorted(name for name in addresses if kinds[name] == MachineKind.CORE)
    voters, gateways = external[:MOST_VOTES], external[MOST_VOTES:]
    if len(voters) % 2 == 0 and voters:
        if not core:
            raise Invalid(
                f"{WORDS[len(voters)]} votes cannot decide a majority: {' and '.join(voters)} need a witness. "
                "Put a router on a core machine (Design › Architecture, Apply settings) and apply it to this environment.",
            )
        voters, core = [*voters, core[0]], core[1:]
    return Electorate({name: peer_url(*addresses[name]) for name in voters}, gateways, core)
