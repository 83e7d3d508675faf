"""`make bench-failover`: how long a group stands still after each kind of fault, on three hosts in network namespaces.

Everything is real (agents, keepers, routers, runtime processes, portal and broker of `tests/lab`); a gap is what the judge's sampler of the
permit pages saw (every 2 ms; in a hand-over a stopwatch, every 0.5 ms), but for "balance of 50 groups", where one page stands for fifty
groups: there it is what the new leader measured (receipt of the old leader's last On to its own inbounds On) and told the portal.
Milliseconds.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.gaps import KINDS, line, measure
from tests.lab.judge import leader_of
from tests.lab.lab import CONNECTORS, EXTERNAL, Lab, until
from tests.lab.network import NoLab

FOLDERS = {"disk": Path(tempfile.gettempdir()), "ram": Path("/dev/shm")}  # noqa: S108 - the RAM disk itself is meant
FIFTY = "balance of 50 groups"
MEASURED = ("crash", "hang", "hang with its keeper", "power-off", "hand-over", "agent restart", FIFTY)


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__)
    parser.add_argument("--profile", choices=("lan", "fast-lan", "wan"), default="lan")
    parser.add_argument("--trials", type=int, default=20, help="of each kind; balance counts each group as one")
    parser.add_argument("--storage", default="disk,ram", help="where etcd's data lie, both by default")
    parser.add_argument("--kinds", default=",".join(MEASURED), help=f"of {', '.join(dict.fromkeys((*KINDS, *MEASURED)))}")
    parser.add_argument("--seconds", type=float, default=1800.0, help="begin no further trial after so long, per storage")
    parser.add_argument(
        "--load", type=float, default=0.0, help="instead: so many seconds under load without a fault, counting false takeovers"
    )
    parser.add_argument(
        "--burn", type=float, default=0.5, help="the share of each processor that the load takes; 0: the load comes from elsewhere"
    )
    options = parser.parse_args()
    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()]
    if unknown := sorted(set(kinds) - set(KINDS) - {FIFTY}) + sorted(set(options.storage.split(",")) - set(FOLDERS)):
        parser.error(f"unknown: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are taken down then too
    good = True
    try:
        for storage in options.storage.split(","):
            with _lab(storage, options.profile, many=0) as lab:
                if options.load:
                    good = soak(lab, options.load, options.burn) and good
                else:
                    measure(lab, [kind for kind in kinds if kind != FIFTY], options.trials, say, time.monotonic() + options.seconds)
                    good = _verdict(lab) and good
            if FIFTY in kinds and not options.load:
                with _lab(storage, options.profile, many=50) as lab:
                    balance(lab, rounds=math.ceil(options.trials / 50))
                    good = _verdict(lab) and good
    except NoLab as reason:
        print(f"There is no lab: {reason}", file=sys.stderr)
        return 2
    say("No two at once, nothing late, nothing lost." if good else "An invariant was broken.")
    return 0 if good else 1


@contextlib.contextmanager
def _lab(storage: str, profile: str, many: int) -> Iterator[Lab]:
    where = {"disk": "on disk, with fsync", "ram": "on a RAM disk"}[storage]
    load = os.getloadavg()[0]
    say(f"\nprofile {profile}, etcd's data {where}; {os.cpu_count()} processors, load {load:.1f} before")
    lab = Lab(many=many, profile=profile, folder=FOLDERS[storage])
    try:
        began = time.monotonic()
        lab.deploy()
        lab.begin()
        say(f"deployed and settled after {time.monotonic() - began:.0f} s")
        yield lab
    finally:
        lab.close()


def _verdict(lab: Lab) -> bool:
    lab.heal()
    verdict = lab.verdict(within=60)
    late = sum(len(lines) for lines in verdict.late.values())
    say(
        f"{'overlap':<28} {len(verdict.overlaps)} ({verdict.samples} looks, at most {verdict.longest_blind * 1000:.0f} ms apart); "
        f"emitted under a lower epoch: {late}; lost: {sum(verdict.lost.values())} of {sum(verdict.emitted.values())}"
    )
    broken = verdict.broken()
    for each in broken[:10]:
        say(f"  {each}")
    return not broken


# ------------------------------------------------------------------------------------------------------------------ fifty groups


def balance(lab: Lab, rounds: int) -> None:
    """Fifty groups of one runtime lead on the wrong machine; a deployment's last step, Balance failover, brings them back."""
    gaps: list[float] = []
    for _ in range(rounds):
        lab.heal()
        until(lambda: _led(lab) == {EXTERNAL[0]}, 60, "external01 leads all fifty", lab.facts)
        until(lambda: f"sessions/{EXTERNAL[1]}.many" in (lab.known() or {}), 30, "external02 follows")
        time.sleep(1.5)
        lab.hosts[EXTERNAL[0]].kill("process:many")
        until(lambda: _led(lab) == {EXTERNAL[1]}, 30, "external02 leads all fifty", lab.facts)
        until(lambda: f"sessions/{EXTERNAL[0]}.many" in (lab.known() or {}), 30, "external01 follows")
        time.sleep(1.5)
        began = time.monotonic()
        lab.deploy_again()
        took = time.monotonic() - began
        until(lambda: _led(lab) == {EXTERNAL[0]}, 10, "external01 leads all fifty again", lab.facts)
        time.sleep(1.0)  # the last reports
        found = _balanced(lab)
        gaps += found
        say(f"{len(found)} groups balanced; the whole deployment took {took:.1f} s")
    say(line(FIFTY, gaps))


def _led(lab: Lab) -> set[str]:
    records = lab.known() or {}
    led = [record.value["runtime"] or "" for key, record in records.items() if key.startswith("leaders/")]
    many = [runtime.partition(".")[0] for runtime in led if runtime.endswith(".many")]
    return set(many) if len(many) == 50 else set()


def _balanced(lab: Lab) -> list[float]:
    """The gap of each group's newest change, where Balance made it."""
    gaps, page = [], 1
    while True:
        answer = lab.api("GET", "groups/", environment="test", project="webshop", page=page).json()
        for group in answer["results"]:
            if group["name"].startswith("many-"):
                change = lab.api("GET", f"groups/{group['id']}/changes/").json()["results"][0]
                if change["cause"] == "balance" and change["gap_seconds"] is not None:
                    gaps.append(change["gap_seconds"] * 1000)
        if not answer.get("next"):
            return gaps
        page += 1


# -------------------------------------------------------------------------------------------------------------------------- load


def _burn(folder: str, share: float) -> None:
    """That share of one processor, and a megabyte written and synchronised five times a second."""
    with Path(folder, f"load-{os.getpid()}").open("wb") as file:
        synced = 0.0
        while True:
            end = time.monotonic() + 0.02 * share
            while time.monotonic() < end:
                pass
            if time.monotonic() - synced > 0.2:
                file.seek(0)
                file.write(b"x" * 1_000_000)
                file.flush()
                os.fsync(file.fileno())
                synced = time.monotonic()
            time.sleep(0.02 * (1 - share))


def soak(lab: Lab, seconds: float, share: float) -> bool:
    """No fault, but load: every change of a leader is a false takeover. The sampler looks every 20 ms only, not to be the load itself."""
    lab.pages.EVERY = 0.02
    spawn = multiprocessing.get_context("spawn")
    burners = [
        spawn.Process(target=_burn, args=(str(lab.home), share), daemon=True) for _ in range(os.cpu_count() or 1 if share > 0 else 0)
    ]
    before = {connector: leader_of(lab.known() or {}, connector) for connector in CONNECTORS}
    turns = {connector: len(lab.pages.turns[connector]) for connector in CONNECTORS}
    for burner in burners:
        burner.start()
    began, loads = time.monotonic(), []
    changes = 0
    try:
        while time.monotonic() - began < seconds:
            time.sleep(1.0)
            loads.append(os.getloadavg()[0])
            for connector in CONNECTORS:
                now = leader_of(lab.known() or {}, connector)
                if now[1] and now != before[connector]:
                    say(f"after {time.monotonic() - began:.0f} s: {connector} went from {before[connector][0]} to {now[0]}")
                    changes, before[connector] = changes + 1, now
    finally:
        for burner in burners:
            burner.kill()
            burner.join(5)
    off = sum(not turn.on for connector in CONNECTORS for turn in lab.pages.turns[connector][turns[connector] :])
    say(
        f"{'under load':<28} {time.monotonic() - began:.0f} s, load average {sum(loads) / max(len(loads), 1):.1f}: "
        f"false takeovers {changes}, leaders that went Off for a moment {off}"
    )
    return _verdict(lab) and not changes


if __name__ == "__main__":
    sys.exit(main())
