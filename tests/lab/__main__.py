"""`make lab FAULTS=200 SEED=7`: a random fault sequence against three real hosts, judged by somebody else. The seed replays it."""

import argparse
import os
import secrets
import signal
import sys
import time

from tests.lab.faults import sequence
from tests.lab.gaps import KINDS, measure
from tests.lab.lab import Lab
from tests.lab.network import NoLab


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long, whatever is left")
    parser.add_argument("--gaps", type=int, default=0, help="first measure the gap of each kind of fault, so many times")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    load = os.getloadavg()[0]
    print(f"lab: {options.faults} faults, SEED={seed}; {os.cpu_count()} processors, load {load:.1f} before", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are taken down then too
    try:
        lab = Lab()
    except NoLab as reason:
        print(f"There is no lab: {reason}", file=sys.stderr)
        return 2
    try:
        began = time.monotonic()
        lab.deploy()
        lab.begin()
        print(f"deployed and settled after {time.monotonic() - began:.1f} s", flush=True)
        if options.gaps:
            measure(lab, KINDS, options.gaps, say=lambda text: print(text, flush=True))
        figures = sequence(lab, faults=options.faults, seed=seed, say=lambda text: print(text, flush=True), seconds=options.seconds)
        lab.heal()
        verdict = lab.verdict(within=90)
    finally:
        lab.close()
    good = not figures.broken and not verdict.broken()
    print("\n".join([*figures.lines(), *verdict.lines()]))
    print(f"times that something stood still: {len(lab.stood)}; disables judged: {lab.judged_disables}")
    print(f"load {os.getloadavg()[0]:.1f} after; SEED={seed}")
    print("Every invariant held." if good else "An invariant was broken.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
