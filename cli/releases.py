"""`baton releases …` and `baton compare`."""

from typing import Annotated, Any

import typer
from rich.text import Text

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption
from cli.portal import Usage

app = typer.Typer(help="Immutable, numbered snapshots of a project.", no_args_is_help=True)

ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="Its number, or latest")]


@app.command("list")
def list_releases(project: ProjectOption = "", json: JsonOption = False) -> None:
    """Releases, newest first."""
    ask, slug = given.portal(), given.project(project)
    rows = list(ask.every("releases/", project=slug))
    if json:
        show.document(rows)
        return
    cells = (
        (row["number"], row["name"], row["created_by"], show.moment(row["created_at"]), ", ".join(row["active_on"]), row["digest"][:12])
        for row in rows
    )
    show.table(
        ["#", "name", "author", "made", "active on", "digest"],
        cells,
        empty=f"{slug} has no release yet: make one by `baton releases create`.",
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
    at: Annotated[str, typer.Option("--at", help="When, RFC 3339 or 2026-12-01T02:00 in this machine's time zone; else now")] = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Choose the release for an environment, now or later."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    chosen = given.release(ask, slug, release)
    body: dict[str, Any] = {"environment": kind}
    if at:
        try:
            body["due_at"] = show.instant(at).astimezone().isoformat()
        except ValueError:
            raise Usage(f"--at {at} is no moment: say it as 2026-12-01T02:00 or 2026-12-01T02:00:00Z.") from None
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


def _difference(answer: dict[str, Any]) -> None:
    show.line(Text(f"{answer['before']} → {answer['after']}", style="bold"))
    for section in answer["sections"]:
        if section["changes"]:
            show.line(Text(f"\n{section['title']}", style="bold underline"))
        for change in section["changes"]:
            show.line(Text(f"  {change['how']:8} {change['sentence']}"))
            for line in change["lines"]:
                show.line(Text(f"    {line['sign']} {line['text']}", style={"+": "green", "-": "red"}.get(line["sign"], "dim")))
    if answer["equal"]:
        show.note("No difference.")
    for sentence in answer["notes"]:
        show.warn(sentence)
