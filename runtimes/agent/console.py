"""`baton-agent status | switch | disable | enable | doctor`: for the machine's administrator, with the portal up or down.

Exit status: 0 as wished (for `status` and `doctor`: all is well), 1 refused, failed or not well, 2 usage or no access.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runtimes.agent import doctor, hand, linux
from runtimes.agent.peers import seen_so
from runtimes.protocol import GroupReport, encode, epoch_words

COMMANDS: dict[str, str] = {
    "status": "who leads each group, this machine's state, the members' sessions, the router",
    "switch": "hand a group over, and wait until it is done",
    "disable": "stop a member's inbounds; it takes no leadership until it is enabled",
    "enable": "let a disabled member take part again",
    "doctor": "check this machine: agent, portal, router, majority, peers, clock, disk, bundles, runtimes",
}
DONE, NOT_WELL, USAGE = 0, 1, 2
DEFAULT_HOME = "/var/lib/baton"


def split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command and its arguments; `--home DIR status` is as good as `status --home DIR`. Without a command: "run"."""
    given = list(arguments)
    at = 2 if given[:1] == ["--home"] else 1 if given and given[0].startswith("--home=") else 0
    if given[at : at + 1] and given[at] in (*COMMANDS, "run"):
        return given[at], given[:at] + given[at + 1 :]
    return "run", given


def parser(command: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"baton-agent {command}", description=f"{COMMANDS[command].capitalize()}.")
    home = os.environ.get("BATON_AGENT_HOME") or DEFAULT_HOME
    made.add_argument("--home", type=Path, default=Path(home), help=f"the agent's folder (BATON_AGENT_HOME; now {home})")
    if command in ("switch", "disable", "enable"):
        made.add_argument("group", metavar="GROUP", help="its name, or CONNECTOR/NAME")
    if command == "switch":
        made.add_argument("--to", metavar="MACHINE", help="who shall lead; without it any ready follower")
    if command in ("disable", "enable"):
        made.add_argument("--machine", metavar="MACHINE", help="whose member; without it this machine's")
    if command in ("status", "doctor"):
        made.add_argument("--json", action="store_true", help="for programs")
    if command == "doctor":
        made.add_argument("--etcd", default=os.environ.get("ETCD_BIN"), help="the etcd program that the agent was told to run (ETCD_BIN)")
    return made


def main(command: str, arguments: Sequence[str]) -> int:
    """Carry out one command; what it says goes to standard output, refusals to standard error."""
    options = parser(command).parse_args(arguments)
    try:
        machine = hand.Machine(options.home)
        return asyncio.run(_do(command, machine, options))
    except hand.NotHere as error:
        print(f"baton-agent: {error}.", file=sys.stderr)
        return USAGE
    except PermissionError as error:
        print(f"baton-agent: {error.filename} may be read by this machine's administrator only.", file=sys.stderr)
        return USAGE
    except hand.Refused as refusal:
        print(f"baton-agent: {options.group}: {refusal}.", file=sys.stderr)
        return NOT_WELL
    except KeyboardInterrupt:
        print("baton-agent: interrupted; what was asked for goes on: see `baton-agent status`.", file=sys.stderr)
        return NOT_WELL


async def _do(command: str, machine: hand.Machine, options: argparse.Namespace) -> int:
    if command == "status":
        found = await hand.status(machine)
        print(encode(found).decode() if options.json else "\n".join(described(found)))
        return DONE if found.well else NOT_WELL
    if command == "doctor":
        checks = await doctor.examine(machine, options.etcd)
        print(encode(checks).decode() if options.json else "\n".join(f"{check.level:8}{check.sentence}" for check in checks))
        return NOT_WELL if any(check.level is doctor.Level.BAD for check in checks) else DONE
    group = machine.named(options.group)
    if command == "switch":
        said = await hand.switch(machine, group, options.to)
    else:
        act = hand.disable if command == "disable" else hand.enable
        said = await act(machine, group, options.machine)
    print(f"{group.title}: {said}.")
    return DONE


def described(found: hand.MachineStatus) -> list[str]:
    """The status in lines for people."""
    lines = [f"{found.machine} ({found.project} / {found.environment}), portal {found.portal}"]
    lines.append("Agent    running" if found.agent_running else "Agent    NOT running: router and runtimes go on, nothing restarts them")
    router = found.router
    words = "majority" if router.majority else f"NO MAJORITY ({router.state})" if router.url else "none"
    reason = f": {router.reason}" if router.reason else ""
    where = f" at {router.url}, members {', '.join(router.members)}" if router.url else ""
    lines.append(f"Router   {words}{where}{reason}")
    for number, peer in enumerate(found.peers):
        lines.append(f"{'Peers' if number == 0 else '':9}{seen_so(peer, linux.utc_now())}")
    if not found.groups:
        lines.append("Groups   none on this machine")
    for group in found.groups:
        lines += ["", *_group_lines(group)]
    return lines


def _group_lines(group: hand.GroupStatus) -> list[str]:
    leader = group.leader or ("nobody" if group.known else "not known")
    lines = [f"{group.connector}/{group.name}: led by {leader}" + (f", epoch {epoch_words(group.epoch)}" if group.epoch else "")]
    if group.problem:
        lines.append(f"  ATTENTION  {group.problem}")
    lines.append(f"  here       {_here(group.here)}")
    for member in group.members:
        marks = [
            f"session {member.session}",
            "leads" if member.leads else "",
            "On" if member.on else "",
            "disabled" if member.disabled else "",
            "" if member.ready or member.session in ("absent", "unknown") else "not ready",
            f"bundle of release {member.release}" if member.release is not None else "",
        ]
        lines.append(f"  {member.runtime:24} {', '.join(mark for mark in marks if mark)}")
    if group.request is not None:
        lines.append(f"  under way  a switch to {group.request.to or 'any ready follower'}, asked by {group.request.actor}")
    lines.append(f"  isolation  {group.isolation}")
    return lines


def _here(said: GroupReport | None) -> str:
    return "its process is not running" if said is None else f"{said.status}, {said.state}: {said.reason}"
