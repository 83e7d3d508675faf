"""`baton groups …` and `baton switch`: who leads, and the acts of an operator."""

import re
import time
from typing import Annotated, Any

import typer
from rich.text import Text

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption
from cli.portal import Portal, Usage

app = typer.Typer(help="Failover groups: who leads, switch, disable, enable.", no_args_is_help=True)

ENDED = ("succeeded", "failed", "expired")
WAIT_SECONDS = 60.0
REPORT_SECONDS = 5.0

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Its name or id")]
MachineArgument = Annotated[str, typer.Argument(metavar="MACHINE", help="The member's machine, such as external01")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done or refused")]


@app.command("list")
def list_groups(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Every member of every group with status, state and the reason."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    rows = list(ask.every("groups/", project=slug, environment=kind))
    if json:
        show.document(rows)
        return
    cells = [
        (
            row["name"] if first else Text(""), member["machine"], show.status(member["status"]), show.status(member["state"]),
            member["preference"], show.age(member["last_report_at"]), member["reason"],
        )
        for row in rows
        for first, member in ((member is row["members"][0], member) for member in row["members"])
    ]  # fmt: skip
    columns = ["group", "machine", "status", "state", "preference", "heard", "reason"]
    show.table(
        columns, cells, empty=f"{slug} › {kind} has no failover group: enable failover in Design, group the flows in Create, deploy."
    )
    for row in rows:
        for sentence in _beside_the_table(row):
            show.warn(sentence)
        if row["returns"] is not None:
            show.line(f"{row['name']}: {row['returns']['sentence']}{_in(row['returns']['in_seconds'])}")


def _beside_the_table(row: dict[str, Any]) -> list[str]:
    """What is wrong with a group, each thing once: not what a row of the table gives as its reason already."""
    told = [member["reason"] for member in row["members"] if member["reason"]]

    def new(sentence: str) -> bool:
        known = any(sentence in said or said in sentence for said in told)
        told.append(sentence)
        return not known

    found = [f"{row['name']}: {problem}" for problem in row["problems"] if new(problem)]
    standby = row.get("without_standby", ())  # a portal of before does not tell
    reasons = [reason for reason in standby if new(reason)]
    found += [f"{row['name']} has no standby: {reason}" for reason in reasons]
    if standby and not reasons:
        found.append(f"{row['name']} has no standby.")
    return found + [f"{row['name']}: {alarm['sentence']} {alarm['remedy']}" for alarm in row["alarms"]]


def _in(seconds: float | None) -> str:
    """ " In 3 min 20 s." """
    return "" if seconds is None else f" In {int(seconds) // 60} min {int(seconds) % 60} s."


def _seconds(text: str) -> int:
    """ "90m", "2h" or "1d" in seconds. Raises Usage."""
    found = re.fullmatch(r"(\d{1,5})([mhd])", text.strip())
    if found is None:
        raise Usage(f"--for {text} is no time: say it as 90m, 2h or 1d.")
    return int(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]]


def switch(
    group: GroupArgument,
    to: Annotated[str, typer.Option("--to", metavar="MACHINE", help="Who shall lead; left out: any ready follower")] = "",
    expect: Annotated[str, typer.Option("--expect", metavar="MACHINE", help="Refuse when another one leads by now")] = "",
    stays: Annotated[str, typer.Option("--for", metavar="TIME", help="90m, 2h or 1d: then it returns to the preferred leader")] = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Hand leadership over, and wait until it is done."""
    body: dict[str, Any] = {name: machine for name, machine in (("candidate", to), ("expected_leader", expect)) if machine}
    if stays:
        body["returns_after_seconds"] = _seconds(stays)
    _act(group, "switch", body, environment, project, wait=wait, json=json)


app.command("switch")(switch)


@app.command()
def disable(
    group: GroupArgument, machine: MachineArgument, environment: EnvironmentOption = "", project: ProjectOption = "",
    wait: WaitOption = True, json: JsonOption = False,
) -> None:  # fmt: skip
    """Stop a member's inbounds; it takes no leadership until it is enabled."""
    _act(group, "disable", {"machine": machine}, environment, project, wait=wait, json=json)


@app.command()
def enable(
    group: GroupArgument, machine: MachineArgument, environment: EnvironmentOption = "", project: ProjectOption = "",
    wait: WaitOption = True, json: JsonOption = False,
) -> None:  # fmt: skip
    """Let a disabled member take part again."""
    _act(group, "enable", {"machine": machine}, environment, project, wait=wait, json=json)


@app.command()
def prefer(group: GroupArgument, machine: MachineArgument, environment: EnvironmentOption = "", project: ProjectOption = "") -> None:
    """Make the machine's member the preferred leader; Balance failover brings leadership there."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    found = given.group(ask, slug, kind, group)
    ask.ask("PUT", f"groups/{found['id']}/preference/", json={"machine": machine, "preference": "leader"})
    show.note(
        f"{found['name']} prefers {machine}. Leadership moves with the next Balance failover, or as the group's failback policy says."
    )


@app.command()
def changes(
    group: GroupArgument,
    last: Annotated[int, typer.Option("--last", min=1, help="How many")] = 20,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Every change of leadership, newest first: why, who asked, and the gap."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    found = given.group(ask, slug, kind, group)
    rows: list[dict[str, Any]] = []
    for row in ask.every(f"groups/{found['id']}/changes/"):
        rows.append(row)
        if len(rows) == last:
            break
    if json:
        show.document(rows)
        return
    cells = (
        (
            show.moment(row["at"]),
            show.epoch(row["epoch"]),
            row["previous"],
            row["runtime"],
            row["cause"],
            row["actor"],
            show.seconds(row["gap_seconds"]),
        )
        for row in rows
    )
    show.table(["at", "epoch", "from", "to", "cause", "by", "gap"], cells, empty=f"Nobody ever led {found['name']} here.")


def _act(group: str, act: str, body: dict[str, Any], environment: str, project: str, *, wait: bool, json: bool) -> None:
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    found = given.group(ask, slug, kind, group)
    wish = ask.post(f"groups/{found['id']}/{act}/", body)
    if wait:
        wish = _ended(ask, found["id"], wish)
    if json:
        show.document(wish)
    elif wish["status"] == "succeeded":
        leader = _leader(ask, found["id"], body.get("candidate", ""))
        show.note(f"{act.capitalize()} of {found['name']} is done: {f'{leader} leads' if leader else 'the portal sees no leader yet'}.")
    elif not wait:
        show.note(f"{act.capitalize()} of {found['name']} was asked for (request {wish['request']}).")
    else:
        show.refusal(f"{act} of {found['name']}: {wish['reason'] or wish['status']}", [])
    if wait and wish["status"] != "succeeded":
        raise typer.Exit(1)


def _leader(ask: Portal, group_id: str, wanted: str) -> str:
    """The machine that is reported as leader; what was asked for is done a moment before the report of it comes. Empty: none."""
    deadline = time.monotonic() + REPORT_SECONDS
    while True:
        leader = ask.get(f"groups/{group_id}/")["leader"]
        found = str(leader["machine"]) if leader else ""
        if (found and wanted in ("", found)) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _ended(ask: Portal, group_id: str, wish: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_SECONDS
    while wish["status"] not in ENDED and time.monotonic() < deadline:
        time.sleep(0.2)
        wish = ask.get(f"groups/{group_id}/requests/{wish['request']}/")
    return wish
