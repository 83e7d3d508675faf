"""`baton releases …` and `baton compare`."""

from typing import Annotated, Any

import typer
from rich.text import Text

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, OverrideOption, ProjectOption

app = typer.Typer(help="Immutable, numbered snapshots of a project.", no_args_is_help=True)

CONTEXT_LINES = 3
ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="Its number, or latest")]


@app.command("list")
def list_releases(project: ProjectOption = "", json: JsonOption = False) -> None:
    """Releases, newest first."""
    show.listed(
        given.rows("releases/", project),
        json,
        {
            "#": lambda row: row["number"],
            "name": lambda row: row["name"],
            "author": lambda row: row["created_by"],
            "made": lambda row: show.moment(row["created_at"]),
            "active on": lambda row: ", ".join(row["active_on"]),
            "digest": lambda row: row["digest"][:12],
        },
        empty=f"{given.project(project)} has no release yet: make one by `baton releases create`.",
    )


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What is in it, in a few words")],
    note: Annotated[str, typer.Option("--note", "-m", help="Why; for those who approve and deploy it")] = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Make a release from the latest saved version of every flow."""
    ask, slug = given.portal(), given.project(project)
    made = ask.post("releases/", {"project": slug, "name": name, "note": note})
    if json:
        show.document(made)
        return
    show.note(f"Release {made['number']} {made['name']} of {slug} is made (digest {made['digest'][:12]}).")
    for sentence in made["omissions"]:
        show.warn(sentence)


@app.command()
def activate(
    release: ReleaseArgument,
    at: Annotated[str, typer.Option("--at", help="When, RFC 3339 or 2026-12-01T02:00 in the environment's time zone; else now")] = "",
    override: OverrideOption = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Choose the release for an environment, now or later."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    chosen = given.release(ask, slug, release)
    body: dict[str, Any] = {"environment": kind}
    if at:
        body["due_at"] = given.moment(at)
    if override:
        body["override"] = override
    answer = ask.post(f"releases/{chosen['id']}/activate/", body)
    if json:
        show.document(answer)
        return
    when = f"becomes active at {show.moment(answer['due_at'])}" if answer["status"] == "scheduled" else f"is {answer['status']}"
    show.note(f"Release {chosen['number']} {when} on {slug} › {kind}.")
    for warning in answer["warnings"]:
        show.warn(warning)


@app.command()
def compare(
    release: ReleaseArgument,
    other: Annotated[str, typer.Argument(metavar="[OTHER]", help="The release before; left out: what runs in --environment")] = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 when they differ")] = False,
    json: JsonOption = False,
) -> None:
    """What RELEASE changes against OTHER, or against what runs. Of secrets only that they changed."""
    ask, slug = given.portal(), given.project(project)
    chosen = given.release(ask, slug, release)
    query: dict[str, Any] = {"with": given.release(ask, slug, other)["id"]} if other else {}
    if environment or not other:
        query["environment"] = given.environment(environment)
    answer = ask.get(f"releases/{chosen['id']}/compare/", **query)
    if json:
        show.document(answer)
    else:
        _difference(answer)
    if exit_code and not answer["equal"]:
        raise typer.Exit(1)


def _near(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without equal lines more than three away from any change, as the page shows them; `--json` has them all."""
    changed = [number for number, line in enumerate(lines) if line["sign"] != " "]
    found: list[dict[str, str]] = []
    left = 0
    for number, line in enumerate([*lines, None]):
        near = line is None or any(abs(number - other) <= CONTEXT_LINES for other in changed)
        if near and left:
            found.append({"sign": "…", "text": f"{left} equal line{'s' if left > 1 else ''}"})
            left = 0
        if line is not None and near:
            found.append(line)
        left += not near
    return found


def _difference(answer: dict[str, Any]) -> None:
    show.line(Text(f"{answer['before']} → {answer['after']}", style="bold"))
    for section in answer["sections"]:
        if section["changes"]:
            show.line(Text(f"\n{section['title']}", style="bold underline"))
        for change in section["changes"]:
            show.line(Text(f"  {change['how']:8} {change['sentence']}"))
            for line in _near(change["lines"]):
                show.line(Text(f"    {line['sign']} {line['text']}", style={"+": "green", "-": "red"}.get(line["sign"], "dim")))
    if answer["equal"]:
        show.note("No difference.")
    for sentence in answer["notes"]:
        show.warn(sentence)


def preview(
    release: ReleaseArgument,
    leave_out: Annotated[list[str] | None, typer.Option("--leave-out", help="An offline machine; repeatable")] = None,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """What deploying RELEASE would do now: steps, restarts, leadership, gaps. Exit status 1: something forbids it."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    chosen = given.release(ask, slug, release)
    found = ask.get(f"releases/{chosen['id']}/preview/", environment=kind, leaving_out=leave_out or None)
    show.answer(found, json, _foreseen)
    if found["obstacles"] or found["rules"] or found["missing"] or any(step["outcome"] == "fails" for step in found["steps"]):
        raise typer.Exit(1)


def _foreseen(found: dict[str, Any]) -> None:
    for step in found["steps"]:
        show.line(f"{step['number']:3} {step['title']}" + (f": {step['sentence']}" if step["sentence"] else ""))
        if step["outcome"] == "fails":
            show.line(Text("      Here the run would stop; what comes after it is not foreseen.", style="yellow"))
        for text in [f"restarts {', '.join(step['restarts'])}"] if step["restarts"] else []:
            show.line(f"      {text}")
        for moved in step["hand_overs"]:
            show.line(f"      {moved['group']}: {moved['before']} → {moved['after']}")
        for group in step["without_standby"]:
            show.line(Text(f"      {group} has no standby meanwhile", style="yellow"))
        for group in step["interrupted"]:
            show.line(Text(f"      nobody leads {group} for a while", style="yellow"))
    for sentence in [*found["missing"], *found["gaps"]]:
        show.warn(sentence)
    for sentence in found["obstacles"]:
        if sentence not in found["missing"]:  # said already
            show.warn(f"forbids it: {sentence}")
    for sentence in found["rules"]:
        show.warn(f"forbids it: {sentence}")
    show.note(_how_long(found))


def _how_long(found: dict[str, Any]) -> str:
    if found["seconds"] is None:
        return "How long it takes is not known yet."
    untimed = found["untimed"]
    if untimed:
        return f"More than {show.seconds(found['seconds'])}: of {untimed} step{'s' if untimed > 1 else ''} no time is known from before."
    return f"About {show.seconds(found['seconds'])}."


@app.command()
def retention(
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="May releases go by themselves")] = None,
    keep_last: Annotated[int | None, typer.Option("--keep-last", help="The newest so many stay")] = None,
    keep_days: Annotated[int | None, typer.Option("--keep-days", help="Those younger than so many days stay")] = None,
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Which releases may go, and why the others stay; with options, change the rule (administrators)."""
    path = f"projects/{given.project(project)}/retention/"
    wish = {"enabled": enabled, "keep_last": keep_last, "keep_days": keep_days}
    body = {name: value for name, value in wish.items() if value is not None}
    found = given.portal().ask("PATCH", path, json=body) if body else given.portal().get(path)
    show.answer(found, json, _kept)


def _kept(found: dict[str, Any]) -> None:
    word = "on" if found["enabled"] else "off"
    show.note(f"Retention is {word}: the newest {found['keep_last']} and those of the last {found['keep_days']} days stay.")
    for row in found["releases"]:
        show.line(f"{row['number']:5} {'goes' if row['goes'] else 'stays'}  {row['reason']}")
