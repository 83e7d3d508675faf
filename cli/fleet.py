"""`baton machines` and `baton runtimes`: what runs where, as last reported."""

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption
from cli.portal import Usage

machines = typer.Typer(help="Machines of an environment.", no_args_is_help=True)
runtimes = typer.Typer(help="Runtimes: one connector on one machine.", no_args_is_help=True)


@machines.command("list")
def list_machines(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Machines with agent and router."""
    ask, slug = given.portal(), given.project(project)
    rows = list(ask.every("machines/", project=slug, environment=environment))
    if json:
        show.document(rows)
        return
    cells = [
        (
            row["name"], row["environment"], row["kind"], show.status("unknown" if row["silent"] else "on"),
            show.age(row["last_report_at"]), *((row["router"]["state"], row["router"]["reason"]) if row["router"] else ("none", "")),
        )
        for row in rows
    ]  # fmt: skip
    columns = ["machine", "environment", "kind", "agent", "heard", "router", "reason"]
    show.table(columns, cells, empty=f"No machine is registered in {slug}: Deploy › Machines gives the command.")


@machines.command()
def token(machine: str, environment: EnvironmentOption = "", project: ProjectOption = "") -> None:
    """A one-time token with which an agent joins as this machine; shown once."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    rows = ask.get("machines/", project=slug, environment=kind, name=machine)["results"]
    if not rows:
        raise Usage(f"{slug} › {kind} has no machine {machine}: `baton machines list` shows them.")
    typer.echo(ask.post(f"machines/{rows[0]['id']}/token/")["token"])


@runtimes.command("list")
def list_runtimes(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Runtimes with state, release and reason."""
    ask, slug = given.portal(), given.project(project)
    rows = list(ask.every("runtimes/", project=slug, environment=environment))
    if json:
        show.document(rows)
        return
    cells = (
        (
            row["runtime"], row["environment"], show.status(row["state"]), row["release"], row["desired_release"],
            show.age(row["last_report_at"]), row["reason"],
        )
        for row in rows
    )  # fmt: skip
    columns = ["runtime", "environment", "state", "release", "wished", "heard", "reason"]
    show.table(columns, cells, empty=f"{slug} has no runtime yet: apply the architecture, then deploy.")
