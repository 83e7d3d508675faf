"""`baton schedules …`: activations to come."""

from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, MomentArgument, OverrideOption, ProjectOption
from cli.portal import Usage
from cli.releases import ReleaseArgument

app = typer.Typer(help="Scheduled activations.", no_args_is_help=True)

ActivationArgument = Annotated[int, typer.Argument(metavar="ACTIVATION", help="Its id, from `baton schedules list`")]


@app.command("list")
def list_schedules(
    every: Annotated[bool, typer.Option("--all", help="Also those that are over")] = False,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """What becomes active when."""
    rows = [row for row in given.rows("activations/", project, environment) if every or row["status"] in ("scheduled", "held")]
    show.listed(
        rows,
        json,
        {
            "#": lambda row: row["id"],
            "environment": lambda row: row["environment"],
            "release": lambda row: row["release_number"],
            "status": lambda row: show.status(row["status"]),
            "due": lambda row: show.moment(row["due_at"]),
            "deploys": lambda row: _deploys(row),
            "expires": lambda row: show.moment(row["expires_at"]),
            "reason": lambda row: row["reason"],
        },
        empty="Nothing is scheduled: `baton schedules add RELEASE WHEN`.",
    )


def _deploys(row: dict[str, Any]) -> str:
    out = f", without {' and '.join(row['leaving_out'])} if offline then" if row["leaving_out"] else ""
    return f"yes{out}" if row["deploys"] else "no"


@app.command()
def add(
    release: ReleaseArgument,
    at: MomentArgument,
    deploy: Annotated[bool, typer.Option("--deploy", help="Deploy as soon as it is activated")] = False,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="With --deploy: a machine to go on without if it is offline then; repeatable")
    ] = None,
    expires: Annotated[int | None, typer.Option("--expires-after", help="So many minutes late it is not carried out any more")] = None,
    however_late: Annotated[bool, typer.Option("--however-late", help="Instead: carried out however late")] = False,
    override: OverrideOption = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Activate a release later."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    chosen = given.release(ask, slug, release)
    body: dict[str, Any] = {"environment": kind, "due_at": given.moment(at), "deploys": deploy, "override": override}
    if leave_out:
        body["leaving_out"] = leave_out
    if expires is not None and however_late:
        raise Usage("Say --expires-after or --however-late, not both.")
    if expires is not None or however_late:
        body["expires_after_minutes"] = expires
    made = ask.post(f"releases/{chosen['id']}/activate/", body)
    show.answer(made, json, _tell)


@app.command()
def move(activation: ActivationArgument, at: MomentArgument, override: OverrideOption = "", json: JsonOption = False) -> None:
    """Another time; a held one is scheduled again."""
    body = {"due_at": given.moment(at), "override": override}
    show.answer(given.portal().post(f"activations/{activation}/reschedule/", body), json, _tell)


@app.command()
def cancel(activation: ActivationArgument, json: JsonOption = False) -> None:
    """Take it back."""
    show.answer(given.portal().post(f"activations/{activation}/cancel/"), json, _tell)


@app.command()
def hold(activation: ActivationArgument, reason: Annotated[str, typer.Argument()] = "", json: JsonOption = False) -> None:
    """Pause it until a person resumes it."""
    show.answer(given.portal().post(f"activations/{activation}/hold/", {"reason": reason}), json, _tell)


@app.command()
def resume(activation: ActivationArgument, json: JsonOption = False) -> None:
    """Let a held one go on at its own time."""
    show.answer(given.portal().post(f"activations/{activation}/resume/"), json, _tell)


def _tell(row: dict[str, Any]) -> None:
    then = " and deployed" if row["deploys"] else ""
    due = f", due {show.moment(row['due_at'])}{then}" if row["status"] == "scheduled" else ""
    show.note(f"Activation {row['id']} on {row['environment']} is {row['status']}{due}.")
    for warning in row["warnings"]:
        show.warn(warning)
