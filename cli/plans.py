"""`baton plan …`: the ordered recipe of an environment. Steps are named by position; an edit is refused when the plan changed since."""

import json as jsons
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption
from cli.portal import Portal, Usage

app = typer.Typer(help="The ordered recipe of an environment.", no_args_is_help=True)

PositionArgument = Annotated[int, typer.Argument(metavar="POSITION", help="Of the step, as `baton plan show` counts")]
FieldsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="machine, connector, group, timeout_seconds, …: see the API")
]
TOLD_APART = ("id", "position", "title")  # of a step in an answer, not of one that is sent


@app.command("show")
def show_plan(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Its steps in order, and what is wrong or weak about it."""
    _tell(given.portal().get(_path(project, environment)), json)


@app.command()
def default(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Replace the steps: alerting off, routers, every runtime, Balance failover."""
    _replaced(given.portal().post(f"{_path(project, environment)}default/"), json)


@app.command("followers-first")
def followers_first(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Replace the steps by a plan made from who leads now: followers, hand over, former leaders, Balance failover."""
    _replaced(given.portal().post(f"{_path(project, environment)}followers-first/"), json)


@app.command()
def copy(
    to: Annotated[str, typer.Argument(metavar="ENVIRONMENT", help="Whose steps are replaced by these")],
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Copy the plan to another environment; says which of its targets do not exist there."""
    _replaced(given.portal().post(f"{_path(project, environment)}copy/", {"environment": to}), json)


@app.command()
def add(
    kind: Annotated[str, typer.Argument(help="deploy-runtime, manual, http-check, …")],
    fields: FieldsArgument = None,
    position: Annotated[int, typer.Option("--position", help="Counted from 1; else last, but before Balance failover")] = 0,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Add a step: `baton plan add restart-runtime machine=external01 connector=erp`."""
    body = {"kind": kind, **_fields(fields)} | ({"position": position} if position else {})
    _tell(given.portal().post(f"{_path(project, environment)}steps/", body), json)


@app.command()
def change(
    position: PositionArgument,
    fields: FieldsArgument = None,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Change fields of a step: `baton plan change 4 retries=2 timeout_seconds=300`."""
    _on_step(position, "PATCH", _path(project, environment), json, _fields(fields))


@app.command()
def move(
    position: PositionArgument,
    to: Annotated[int, typer.Argument(metavar="TO", help="Its new position")],
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Give a step another place; the others keep their order."""
    _on_step(position, "PATCH", _path(project, environment), json, {"position": to})


@app.command()
def remove(position: PositionArgument, environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Take a step out."""
    _on_step(position, "DELETE", _path(project, environment), json, None)


@app.command()
def export(environment: EnvironmentOption = "", project: ProjectOption = "") -> None:
    """The plan as JSON that `baton plan apply` takes."""
    found = given.portal().get(_path(project, environment))
    show.document({"digest": found["digest"], "steps": [_sent(step) for step in found["steps"]]})


@app.command()
def apply(
    file: Annotated[str, typer.Argument(help="As `baton plan export` writes it; - reads standard input")],
    force: Annotated[bool, typer.Option("--force", help="Also over a plan that somebody changed since the export")] = False,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Replace all steps by those of a file, or none when one is wrong."""
    try:
        told = jsons.loads(sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8"))
        steps, seen = told["steps"], told.get("digest", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Usage(f"{file} is no exported plan: {error}.") from None
    headers = {"If-Match": f'"{seen}"'} if seen and not force else {}
    _tell(given.portal().ask("PUT", _path(project, environment), json={"steps": steps}, headers=headers), json)


def _path(project: str, environment: str) -> str:
    return f"projects/{given.project(project)}/environments/{given.environment(environment)}/plan/"


def _fields(told: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in told or []]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise Usage(f"{wrong[0]} is no FIELD=VALUE, such as machine=external01.")
    return {name: value for name, _, value in pairs}


def _sent(step: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name not in TOLD_APART and value not in ("", None)}


def _on_step(position: int, method: str, path: str, json: bool, body: Any) -> None:
    """Of two who edit at once the second is told to look again: what stands at a position may be another step by then."""
    ask: Portal = given.portal()
    found = ask.get(path)
    step = next((step for step in found["steps"] if step["position"] == position), None)
    if step is None:
        raise Usage(f"There is no step {position}: the plan has {len(found['steps'])}.")
    headers = {"If-Match": f'"{found["digest"]}"'}
    _tell(ask.ask(method, f"{path}steps/{step['id']}/", headers=headers, **({"json": body} if body is not None else {})), json)


def _replaced(found: dict[str, Any], json: bool) -> None:
    _tell(found, json)
    if not json:
        show.note(f"The plan of {found['environment']} was replaced: it has {len(found['steps'])} steps now.")


def _what(step: dict[str, Any]) -> str:
    """Its title, and what that does not say: a manual step's instruction and who confirms it, what a check expects."""
    more = []
    if step["kind"] == "manual":
        who = f"the role {step['confirm_role']}" if step["confirm_role"] else "who may deploy"
        more.append(f"{' '.join(step['instruction'].split())} (confirmed by {who})")
    if step["kind"] == "http-check":
        more.append(f"expects {step['expected_status']}")
    if step["hand_overs"] == "once":
        more.append("at most one hand-over per group")
    return ": ".join([step["title"], *more])


def _tell(found: dict[str, Any], json: bool) -> None:
    if json:
        show.document(found)
        return
    cells = (
        (
            step["position"],
            _what(step),
            step["stage"],
            step["lane"],
            "only when changed" if step["condition"] == "changed" else "",
            step["retries"] or "",
            show.span(step["timeout_seconds"]),
        )
        for step in found["steps"]
    )
    columns = ["#", "step", "stage", "lane", "runs", "retries", "limit"]
    show.table(columns, cells, empty=f"The plan of {found['environment']} has no steps: `baton plan default`.")
    for finding in found["findings"] if found["steps"] else []:
        show.warn(finding)
