"""Machines and their agents: who they are, what they are ordered to do, what they reported.

Calls go down (orders), news comes up (reports) and wakes whoever added himself to `on_report`.
"""

from collections.abc import Callable
from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser

from portal.models import Environment
from runtimes import protocol
from runtimes.models import Bundle, Machine, Runtime

# Called with the environment's id after every stored report, outside its transaction. deployments adds rollout.wake.
on_report: list[Callable[[int], None]] = []


def register(machine: Machine, *, by: AbstractBaseUser) -> str:
    """Make a one-time join token for the machine's agent; earlier unused ones end. Returns the token, which is shown once."""
    raise NotImplementedError


def join(request: protocol.JoinRequest, *, now: datetime) -> protocol.JoinAnswer:
    """Exchange a one-time token for the machine's credential. An agent that joined before is replaced (its credential ends).

    Raises:
        Invalid: the token is unknown, used or expired; says where to get a new one.
    """
    raise NotImplementedError


def machine_of(credential: str) -> Machine | None:
    raise NotImplementedError


def record_report(machine: Machine, report: protocol.Report, *, now: datetime) -> bool:
    """Write what an agent says into observed_*; store events as LeadershipChange and outcomes into GroupRequest; keep logs bounded.

    False: the report is older than one already stored, and was ignored. Idempotent: events and outcomes may come twice.
    """
    raise NotImplementedError


def orders_for(machine: Machine, *, now: datetime) -> protocol.Orders:
    """The whole wish for one machine, in a fixed number of queries."""
    raise NotImplementedError


def touch(*machines: Machine) -> None:
    """What these machines should do has changed: raise orders_version, and wake their waiting agents after commit."""
    raise NotImplementedError


def store_bundle(environment: Environment, content: protocol.BundleContent) -> Bundle:
    """The bundle with this content, made when it is new. Equal content is one bundle."""
    raise NotImplementedError


def assign(runtime: Runtime, bundle: Bundle) -> None:
    """Order a runtime to run a bundle: writes desired_* and stops there."""
    raise NotImplementedError


def start(runtime: Runtime) -> None:
    raise NotImplementedError


def stop(runtime: Runtime) -> None:
    raise NotImplementedError


def restart(runtime: Runtime) -> None:
    raise NotImplementedError


def start_flow(runtime: Runtime, flow_key: str) -> None:
    """Let an ungrouped flow run. Raises Invalid for a grouped one: its group is started and stopped instead."""
    raise NotImplementedError


def stop_flow(runtime: Runtime, flow_key: str) -> None:
    raise NotImplementedError


def assign_routers(environment: Environment, addresses: dict[str, tuple[str, int]]) -> None:
    """Order the environment's routers (and witness) to run as one cluster: machine name -> (Internal IP, Failover port).

    Raises:
        Invalid: an address:port used twice (naming both machines), or a vote count that is even: "Two votes without a witness …".
    """
    raise NotImplementedError
