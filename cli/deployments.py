"""`baton deploy` and `baton deployments …`: start, follow, cancel, resume; the exit status tells the outcome."""

import json as jsons
import time
from typing import Annotated, Any
from urllib.parse import parse_qsl

import typer
from rich.text import Text

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, OverrideOption, ProjectOption
from cli.portal import Portal, Unreachable
from cli.releases import ReleaseArgument

app = typer.Typer(help="Executions of plans.", no_args_is_help=True)

LIVE = ("pending", "running", "waiting")
BROKEN = ("failed", "timed-out")
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 120.0  # for how long a portal that restarts may be away while a deployment is followed
SUCCEEDED, ENDED_BADLY, A_PERSON_MUST_ACT = 0, 1, 5

DeploymentArgument = Annotated[int, typer.Argument(metavar="DEPLOYMENT", help="Its id")]
FollowOption = Annotated[bool, typer.Option("--follow/--no-follow", help="Show the steps until it ends")]
PeopleOption = Annotated[bool, typer.Option("--wait-for-people/--no-wait-for-people", help="At a manual step: wait, or exit with 5")]


def deploy(
    release: ReleaseArgument,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    activate: Annotated[bool, typer.Option("--activate", help="Choose the release for the environment first")] = False,
    leave_out: Annotated[list[str] | None, typer.Option("--leave-out", help="An offline machine to go on without; repeatable")] = None,
    override: OverrideOption = "",
    follow: FollowOption = True,
    wait_for_people: PeopleOption = True,
    json: JsonOption = False,
) -> None:
    """Run the environment's plan from a release, and show its steps until it ends.

    Exit status 0: succeeded; 1: failed, timed out or cancelled; 3: refused; 5: a person must act and --no-wait-for-people was said.
    Ctrl-C ends the watching, never the deployment.
    """
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    chosen = given.release(ask, slug, release)
    if activate:
        ask.post(f"releases/{chosen['id']}/activate/", {"environment": kind, "override": override})
    _warn_without(ask, chosen["id"], kind, leave_out)
    wish = {"environment": kind, "override": override, "leaving_out": leave_out or []}
    begun = ask.post(f"releases/{chosen['id']}/deployments/", wish)
    if not json:
        show.note(f"Deployment {begun['id']}: release {begun['release_number']} goes to {slug} › {kind}.")
    _watch(ask, begun, follow=follow, wait_for_people=wait_for_people, json=json)


def _warn_without(ask: Portal, release: int, kind: str, leave_out: list[str] | None) -> None:
    """Before it begins: where it would stop without these machines."""
    if not leave_out:
        return
    foreseen = ask.get(f"releases/{release}/preview/", environment=kind, leaving_out=leave_out)
    for step in foreseen["steps"]:
        if step["outcome"] == "fails":
            names = " and ".join(leave_out)
            show.warn(f"Without {names} it would stop at step {step['number']}, {step['title']}: {step['sentence']}")


@app.command("list")
def list_deployments(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Deployments, newest first."""
    show.listed(
        given.rows("deployments/", project, environment),
        json,
        {
            "#": lambda row: row["id"],
            "environment": lambda row: row["environment"],
            "release": lambda row: f"{row['release_number']}",
            "status": lambda row: show.status(row["status"]),
            "by": lambda row: f"{row['created_by'] or ''}{' (schedule)' if row['scheduled_for'] else ''}",
            "started": lambda row: show.moment(row["started_at"]),
        },
        empty="Nothing was deployed yet: `baton deploy RELEASE`.",
    )


def rollback(
    look: Annotated[bool, typer.Option("--look", help="Only say where it would lead")] = False,
    leave_out: Annotated[list[str] | None, typer.Option("--leave-out", help="An offline machine to go on without; repeatable")] = None,
    override: OverrideOption = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    follow: FollowOption = True,
    wait_for_people: PeopleOption = True,
    json: JsonOption = False,
) -> None:
    """Deploy the release that ran with success before; what is scheduled there is held. Exit status as of `baton deploy`."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    if look:
        found = ask.get("deployments/rollback/", project=slug, environment=kind)
        show.answer(found, json, lambda it: show.note("; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in it.items())))
        return
    if leave_out:
        _warn_without(ask, ask.get("deployments/rollback/", project=slug, environment=kind)["release"], kind, leave_out)
    body = {"project": slug, "environment": kind, "override": override, "leaving_out": leave_out or []}
    begun = ask.post("deployments/rollback/", body)
    if not json:
        show.note(f"Deployment {begun['id']}: {slug} › {kind} goes back to release {begun['release_number']}.")
    _watch(ask, begun, follow=follow, wait_for_people=wait_for_people, json=json)


@app.command("show")
def show_deployment(deployment: DeploymentArgument, json: JsonOption = False) -> None:
    """One deployment and its steps as they are now."""
    found = given.portal().get(f"deployments/{deployment}/")
    if json:
        show.document(found)
        return
    if found["scheduled_for"]:
        show.note(f"Begun by schedule for {show.moment(found['scheduled_for'])}, asked by {found['created_by']}.")
    for step in found["steps"]:
        show.line(_line(step, len(found["steps"])))
    if found["rollback_of"]:
        show.note(f"It rolls deployment {found['rollback_of']} back.")
    if found["rolled_back_by"]:
        show.note(f"Deployment {found['rolled_back_by']} rolled it back.")
    for one in found["exclusions"]:
        show.warn(f"{one['machine']} is left out. {one['promise']}")
    show.line(Text("Deployment ") + Text(str(found["id"])) + Text(" ") + show.status(found["status"]))


@app.command()
def follow(deployment: DeploymentArgument, wait_for_people: PeopleOption = True, json: JsonOption = False) -> None:
    """Show a deployment's steps until it ends; exit status as of `baton deploy`."""
    ask = given.portal()
    _watch(ask, ask.get(f"deployments/{deployment}/"), follow=True, wait_for_people=wait_for_people, json=json)


@app.command()
def cancel(deployment: DeploymentArgument, json: JsonOption = False) -> None:
    """End a deployment. What its finished steps did stays."""
    answer = given.portal().post(f"deployments/{deployment}/cancel/")
    if json:
        show.document(answer)
        return
    show.note(f"Deployment {deployment} is {answer['status']}.")


@app.command()
def resume(
    deployment: DeploymentArgument,
    override: OverrideOption = "",
    follow: FollowOption = True,
    wait_for_people: PeopleOption = True,
    json: JsonOption = False,
) -> None:
    """Go on from the step that failed: the same run, its history kept."""
    ask = given.portal()
    after = ask.post(f"deployments/{deployment}/resume/", {"override": override})
    _watch(ask, after, follow=follow, wait_for_people=wait_for_people, json=json)


@app.command()
def choices(deployment: DeploymentArgument, json: JsonOption = False) -> None:
    """What can be decided about a deployment that stopped at a failure, and what each choice does."""
    found = given.portal().get(f"deployments/{deployment}/choices/")
    if json:
        show.document(found)
        return
    if not found and _say_who_confirms(given.portal().get(f"deployments/{deployment}/")):
        return
    cells = ((row["choice"], row["machine"] or _steps_of(row), _said(row)) for row in found)
    show.table(["choice", "about", "what it does"], cells, empty=f"Nothing is to be decided about deployment {deployment}.")


def _steps_of(offer: dict[str, Any]) -> str:
    return f"step {', '.join(map(str, offer['steps']))}" if offer["steps"] else ""


def _said(offer: dict[str, Any]) -> str:
    if offer["refusal"]:
        return f"not now: {offer['refusal']}"
    return f"{offer['effect']} {offer['forbidden']} Say --override with a reason." if offer["forbidden"] else str(offer["effect"])


@app.command()
def decide(
    deployment: DeploymentArgument,
    choice: Annotated[str, typer.Argument(help="retry, override, skip, exclude, roll-back or abort: see `baton deployments choices`")],
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; kept with the run")] = "",
    machine: Annotated[str, typer.Option("--machine", help="For exclude: which offline machine")] = "",
    step: Annotated[int | None, typer.Option("--step", help="For skip: which step, where several failed")] = None,
    override: OverrideOption = "",
    follow: FollowOption = True,
    wait_for_people: PeopleOption = True,
    json: JsonOption = False,
) -> None:
    """Decide how a deployment that stopped at a failure goes on, and show its steps until it ends."""
    ask = given.portal()
    wish = {"choice": choice, "reason": reason, "machine": machine, "step": step, "override": override}
    after = ask.post(f"deployments/{deployment}/decide/", wish)
    if choice == "abort":
        follow = False
    _watch(ask, after, follow=follow, wait_for_people=wait_for_people, json=json)


@app.command()
def confirm(
    deployment: DeploymentArgument,
    step: Annotated[int, typer.Argument(metavar="STEP", help="The number of the manual step")],
    follow: FollowOption = True,
    wait_for_people: PeopleOption = True,
    json: JsonOption = False,
) -> None:
    """Say that what a manual step asks for is done."""
    ask = given.portal()
    after = ask.post(f"deployments/{deployment}/steps/{step}/confirm/")
    _watch(ask, after, follow=follow, wait_for_people=wait_for_people, json=json)


@app.command()
def log(
    deployment: DeploymentArgument,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Go on until the deployment says no more")] = False,
    step: Annotated[str, typer.Option("--step", help="Only of this step")] = "",
    machine: Annotated[str, typer.Option("--machine", help="Only of this machine")] = "",
    level: Annotated[str, typer.Option("--level", help="debug, info, warning or error: this one and above")] = "info",
    search: Annotated[str, typer.Option("--search", "-q", help="Only lines that hold this text")] = "",
    json: Annotated[bool, typer.Option("--json", help="One document per line, for programs")] = False,
) -> None:
    """What a deployment's steps and machines said, without a gap; secrets are masked."""
    ask, query = given.portal(), {"of": step, "machine": machine, "level": level, "q": search}
    while True:
        piece = ask.get(f"deployments/{deployment}/log/", **query)
        for line in piece["lines"]:
            if json:
                typer.echo(jsons.dumps(line, ensure_ascii=False))
            else:
                style = {"error": "red", "warning": "yellow"}.get(line["level"], "")
                show.line(Text(f"{show.moment(line['at'])}  {line['source']:<20} {line['text']}", style=style))
        query = dict(parse_qsl(piece["next"]))
        if piece["ended"] or (piece["complete"] and not follow):
            return
        if piece["complete"]:
            time.sleep(POLL_SECONDS)


def _watch(ask: Portal, found: dict[str, Any], *, follow: bool, wait_for_people: bool, json: bool) -> None:
    """Print what changes until the end; exits with the outcome."""
    shown: dict[int, tuple[str, str]] = {}
    away_since: float | None = None
    while follow:
        if not json:
            _print_news(found, shown)
        if found["status"] not in LIVE:
            break
        if found["status"] == "waiting" and not wait_for_people:
            if json:
                show.document(found)
            else:
                _say_who_confirms(found)
            raise typer.Exit(A_PERSON_MUST_ACT)
        time.sleep(POLL_SECONDS)
        try:
            found, away_since = ask.get(f"deployments/{found['id']}/"), None
        except Unreachable as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > PATIENCE_SECONDS:
                raise
            if not json and time.monotonic() - away_since < POLL_SECONDS:
                show.warn(f"{error.sentence} The deployment goes on; watching again as soon as it answers.")
    if json:
        show.document(found)
    elif follow:
        show.line(Text(f"Deployment {found['id']} ") + show.status(found["status"]) + Text(f" after {_took(found)}."))
    if follow and found["status"] != "succeeded":
        if not json and found["status"] in BROKEN:
            show.note(f"Decide how it goes on: `baton deployments choices {found['id']}`.")
        raise typer.Exit(ENDED_BADLY)


def _say_who_confirms(found: dict[str, Any]) -> int:
    """For each manual step that waits, who may confirm it and how; how many there are."""
    waiting = [step for step in found["steps"] if step["status"] == "waiting"]
    for step in waiting:
        how = f"`baton deployments confirm {found['id']} {step['number']}`"
        show.note(
            f"Step {step['number']} waits for a person ({step['confirmed_by']} or above): {step['instruction']} When it is done: {how}."
        )
    return len(waiting)


def _print_news(found: dict[str, Any], shown: dict[int, tuple[str, str]]) -> None:
    for step in found["steps"]:
        news = (step["status"], step["reason"])
        if step["status"] != "pending" and shown.get(step["number"]) != news:
            shown[step["number"]] = news
            show.line(_line(step, len(found["steps"])))


def _line(step: dict[str, Any], of: int) -> Text:
    line = Text(f"{step['number']:>{len(str(of))}}/{of}  ") + show.status(step["status"])
    line.append(" " * max(1, 11 - len(step["status"])) + step["title"])
    if step["ended_at"] and step["started_at"]:
        line.append(f"  {_took(step)}", style="dim")
    if step["reason"]:
        line.append(f"\n{'':{2 * len(str(of)) + 3}}{step['reason']}", style="red" if step["status"] in show.BAD else "dim")
    return line


def _took(row: dict[str, Any]) -> str:
    if not row["started_at"] or not row["ended_at"]:
        return "–"
    began, ended = (show.instant(row[name]) for name in ("started_at", "ended_at"))
    return show.seconds((ended - began).total_seconds())
