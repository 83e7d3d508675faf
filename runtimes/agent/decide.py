"""What the agent does next, as pure functions: time and everything seen are arguments, every answer says why in a sentence."""

from dataclasses import dataclass
from enum import StrEnum

from runtimes.protocol import Wire

QUICK_EXITS = 3  # exits in a row without having been ready, from which on a restart waits
FIRST_WAIT = 1.0  # seconds
LONGEST_WAIT = 30.0


def restart_delay(exits_in_a_row: int) -> float:
    """Seconds to wait before a restart: none at first, then 1 s doubling to 30 s."""
    if exits_in_a_row < QUICK_EXITS:
        return 0.0
    return float(min(FIRST_WAIT * 2 ** min(exits_in_a_row - QUICK_EXITS, 16), LONGEST_WAIT))


def retry_delay(failures: int, *, first: float = 0.1, longest: float = 2.0) -> float:
    """Seconds to wait before the next call after so many failures in a row."""
    return float(min(first * 2 ** min(max(failures - 1, 0), 16), longest)) if failures > 0 else 0.0


LOADED = 2.0  # runnable programs per processor, above which a machine is called loaded


def why_all_late(late: int, running: int, machine: str, *, load: float, processors: int) -> str:
    """When no process of a machine answers: one cause for all of them instead of one riddle for each. Empty: some answer, or there is one
    only. `load` is the load average of the last minute."""
    if late < running or running < 2:
        return ""
    they = f"the {running} processes on {machine} do not answer in time"
    if load >= LOADED * processors:
        return f"{they}: the machine has too little processor time for them (load {load:.0f} on {processors} processors)"
    return f"{they}, all at once: the machine stood still, or they wait for a disk or a mount that does not answer"


class Launched(Wire, frozen=True):
    """What a process was started with and cannot take over while it runs."""

    digest: str
    release: int
    restarts: int
    etcd: str | None
    namespace: str
    generation: int


def difference(launched: Launched, wished: Launched, *, fails_over: bool = True) -> str:
    """Why the running process has to be replaced; empty when it need not be. `fails_over`: has its bundle groups that do, for no other
    needs the router or its cluster."""
    if launched.digest != wished.digest:
        return f"release {wished.release} replaces release {launched.release}"
    if launched.restarts != wished.restarts:
        return "a restart was ordered"
    if not fails_over:
        return ""
    if launched.etcd is not None and wished.etcd is None:
        return "this machine has no router any more"
    if launched.generation != wished.generation or launched.namespace != wished.namespace:
        return f"the cluster was built anew (generation {wished.generation})"
    if launched.etcd != wished.etcd:
        return f"the router is now at {wished.etcd}"
    return ""


class Keeping(StrEnum):
    """What is known of the keeper of a program."""

    GONE = "gone"  # nobody holds its lock
    ALIVE = "alive"
    STUCK = "stuck"  # somebody holds the lock but does not answer


class BundleState(StrEnum):
    MISSING = "missing"  # not tried yet
    HERE = "here"  # verified
    REFUSED = "refused"  # does not verify
    UNREACHABLE = "unreachable"  # the portal did not give it


class Act(StrEnum):
    NOTHING = "nothing"
    FETCH = "fetch"
    START = "start"
    STOP = "stop"
    ATTACH = "attach"
    WAIT = "wait"  # for `at`


@dataclass(frozen=True)
class Step:
    act: Act
    because: str
    at: float | None = None  # monotonic moment to look again, when the act is to wait
    launch: Launched | None = None  # what to start


@dataclass(frozen=True)
class Seen:
    """One program as the agent sees it."""

    keeping: Keeping
    stopping: bool = False
    launched: Launched | None = None  # the living process's, or the last one's
    bundle: BundleState = BundleState.HERE  # of the wished digest
    bundle_reason: str = ""
    fallback_here: bool = False  # is the bundle of `launched` verified
    fails_over: bool = True  # has the bundle of `launched` groups that fail over
    fetch_again_at: float = 0.0  # monotonic
    start_again_at: float = 0.0  # monotonic, from the back-off
    exits_in_a_row: int = 0


def next_step(wished: Launched | None, seen: Seen, *, now: float) -> Step:
    """Bring one runtime closer to its order. `wished` None: it shall not run."""
    if seen.keeping is Keeping.STUCK:
        return Step(Act.ATTACH, "its keeper holds the lock but does not answer")
    alive = seen.keeping is Keeping.ALIVE
    if alive and seen.stopping:
        return Step(Act.NOTHING, "it is stopping")
    if wished is None:
        return Step(Act.STOP, "ordered to stop") if alive else Step(Act.NOTHING, "stopped as ordered")
    if seen.bundle is BundleState.HERE:
        target: Launched | None = wished
    elif seen.bundle is BundleState.MISSING or now >= seen.fetch_again_at:
        return Step(Act.FETCH, f"the bundle of release {wished.release} is not here yet")
    else:  # the wished bundle cannot be had: go on with the one before
        target = _fallback(wished, seen)
    if target is None:
        return Step(Act.WAIT, seen.bundle_reason, at=seen.fetch_again_at)
    if alive:
        assert seen.launched is not None
        change = difference(seen.launched, target, fails_over=seen.fails_over)
        if change:
            return Step(Act.STOP, change)
        if target is not wished:
            return Step(Act.WAIT, seen.bundle_reason, at=seen.fetch_again_at)
        return Step(Act.NOTHING, "it runs as ordered")
    if now < seen.start_again_at:
        return Step(Act.WAIT, f"{seen.exits_in_a_row} exits in a row without having been ready", at=seen.start_again_at)
    return Step(Act.START, "ordered to run", launch=target)


def _fallback(wished: Launched, seen: Seen) -> Launched | None:
    if seen.launched is None or not seen.fallback_here:
        return None
    return Launched(
        digest=seen.launched.digest,
        release=seen.launched.release,
        restarts=wished.restarts,
        etcd=wished.etcd,
        namespace=wished.namespace,
        generation=wished.generation,
    )
