"""`baton project …`: projects, and a project as one YAML file, to live in git: export, plan, apply."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import JsonOption, ProjectOption
from cli.portal import Usage

app = typer.Typer(help="Projects, and a project as a file.", no_args_is_help=True)

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="The YAML; - is standard input")]


@app.command("list")
def list_projects(json: JsonOption = False) -> None:
    """The projects of your teams."""
    show.listed(
        list(given.portal().every("projects/")),
        json,
        {
            "project": lambda row: row["slug"],
            "name": lambda row: row["name"],
            "team": lambda row: row["team"],
        },
        empty="There is no project yet: `baton project create`.",
    )


@app.command()
def create(
    slug: Annotated[str, typer.Argument(help="Its name in addresses, such as webshop")],
    team: Annotated[str, typer.Option("--team", "-t", help="The slug of a team that you administer")],
    name: Annotated[str, typer.Option("--name", "-n", help="Its name for people; default: the slug")] = "",
    description: Annotated[str, typer.Option("--description", help="What it connects")] = "",
    json: JsonOption = False,
) -> None:
    """A new project with Test, Acceptance and Production, empty until it is drawn or `baton project apply` fills it."""
    body = {"team": team, "slug": slug, "name": name or slug, "description": description}
    made = given.portal().post("projects/", body)
    show.answer(made, json, lambda row: show.note(f"{row['slug']} was made, with {', '.join(row['environments'])}."))


@app.command()
def export(
    to: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to; else standard output")] = "", project: ProjectOption = ""
) -> None:
    """The project as YAML, without secrets: the same project gives the same bytes."""
    text = given.portal().text(f"projects/{given.project(project)}/export/")
    if to:
        Path(to).write_text(text, encoding="utf-8")
        show.note(f"{given.project(project)} is written to {to}.")
    else:
        sys.stdout.write(text)


@app.command()
def plan(
    file: FileArgument,
    project: ProjectOption = "",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 when applying would change something")] = False,
    json: JsonOption = False,
) -> None:
    """What applying the file would change; nothing is changed."""
    found = _ask(file, project, apply=False, seen="")
    show.answer(found, json, _tell)
    if exit_code and found["differences"]:
        raise typer.Exit(1)


@app.command()
def apply(
    file: FileArgument,
    seen: Annotated[str, typer.Option("--seen", help="`before` of the plan that was agreed to: nothing else is applied")] = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Make the project what the file says, whole or not at all."""
    show.answer(_ask(file, project, apply=True, seen=seen), json, _tell)


def _ask(file: str, project: str, *, apply: bool, seen: str) -> Any:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"{file} cannot be read: {error}.") from None
    query = {"apply": "true"} if apply else {}
    return given.portal().post(f"projects/{given.project(project)}/import/", {"text": text, "seen": seen}, **query)


def _tell(found: dict[str, Any]) -> None:
    for item in found["differences"]:
        show.line(f"{item['verb']:7} {item['what']}")
        for detail in item["details"]:
            show.line(f"        {detail}")
    for note in found["notes"]:
        show.warn(note)
    count = len(found["differences"])
    said = f"{count} difference{'s' if count != 1 else ''}" if count else "No difference"
    show.note(f"{said}{' applied' if found['applied'] and count else ''}. Before: {found['before'][:12]}")
