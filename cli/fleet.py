"""`baton machines` and `baton runtimes`: what runs where, as last reported."""

import time
from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption
from cli.portal import Portal, Usage

POLL_SECONDS = 0.5
REACH_SECONDS = 30.0

machines = typer.Typer(help="Machines of an environment.", no_args_is_help=True)
runtimes = typer.Typer(help="Runtimes: one connector on one machine.", no_args_is_help=True)


@machines.command("list")
def list_machines(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Machines with agent and router."""
    show.listed(
        given.rows("machines/", project, environment),
        json,
        {
            "machine": lambda row: row["name"],
            "environment": lambda row: row["environment"],
            "kind": lambda row: row["kind"],
            "agent": lambda row: show.status("unknown" if row["silent"] else "on"),
            "heard": lambda row: show.age(row["last_report_at"]),
            "router": lambda row: row["router"]["state"] if row["router"] else "none",
            "reason": lambda row: row["router"]["reason"] if row["router"] else "",
        },
        empty=f"No machine is registered in {given.project(project)}: Deploy › Machines gives the command.",
    )


@machines.command()
def reach(
    machine: str,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until every other machine has answered")] = True,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Have the other machines try its Internal IP and Failover port, before any router runs. Exit status 1: not reached by all."""
    ask = given.portal()
    path = f"machines/{_machine(ask, machine, environment, project)['id']}/reach-test/"
    found = ask.post(path)
    ends = time.monotonic() + REACH_SECONDS
    while wait and found["under_way"] and time.monotonic() < ends:
        time.sleep(POLL_SECONDS)
        found = ask.get(path)
    show.answer(found, json, lambda it: show.note("\n".join(f"{it['address']}: {sentence}" for sentence in it["sentences"])))
    if wait and not found["reachable"]:
        raise typer.Exit(1)


def _machine(ask: Portal, name: str, environment: str, project: str) -> dict[str, Any]:
    slug, kind = given.project(project), given.environment(environment)
    rows = ask.get("machines/", project=slug, environment=kind, name=name)["results"]
    if not rows:
        raise Usage(f"{slug} › {kind} has no machine {name}: `baton machines list` shows them.")
    found: dict[str, Any] = rows[0]
    return found


@machines.command()
def token(machine: str, environment: EnvironmentOption = "", project: ProjectOption = "") -> None:
    """A one-time token with which an agent joins as this machine; shown once."""
    ask = given.portal()
    typer.echo(ask.post(f"machines/{_machine(ask, machine, environment, project)['id']}/token/")["token"])


@runtimes.command("list")
def list_runtimes(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Runtimes with state, release and reason."""
    show.listed(
        given.rows("runtimes/", project, environment),
        json,
        {
            "runtime": lambda row: row["runtime"],
            "environment": lambda row: row["environment"],
            "state": lambda row: show.status(row["state"]),
            "release": lambda row: _release(row),
            "wished": lambda row: "stopped until it is deployed" if row["held"] else row["desired_release"],
            "heard": lambda row: show.age(row["last_report_at"]),
            "reason": lambda row: row["held"] or row["reason"],
        },
        empty=f"{given.project(project)} has no runtime yet: apply the architecture, then deploy.",
    )


def _release(row: dict[str, Any]) -> Any:
    """What it runs: nothing while it is held; "3 (the same as 1)" where a later release changed nothing here."""
    if row["held"]:
        return "–"
    return f"{row['release']} (the same as {row['bundle_release']})" if row["bundle_release"] else row["release"]
