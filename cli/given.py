"""Options that many commands share, and how a person names things: a release by its number, a group by its name."""

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from cli import settings, show
from cli.portal import Portal, Usage

ProjectOption = Annotated[str, typer.Option("--project", "-p", envvar="BATON_PROJECT", help="Its slug, such as webshop")]
EnvironmentOption = Annotated[str, typer.Option("--environment", "-e", envvar="BATON_ENVIRONMENT", help="test, acceptance or production")]
JsonOption = Annotated[bool, typer.Option("--json", help="The API's own document, for programs")]

OverrideOption = Annotated[
    str, typer.Option("--override", help="Why the rules of the environment (order, windows, freezes) are set aside; operators only, kept")
]
MomentArgument = Annotated[
    str, typer.Argument(metavar="WHEN", help="2026-12-01T02:00 in the environment's time zone, or with Z or an offset")
]

opened = ExitStack()  # what ends with the command line (cli/app.py)


def portal(known: settings.Settings | None = None) -> Portal:
    """The portal of this command line; its connections end with the command."""
    made = Portal(known or settings.read())
    opened.callback(made.close)
    return made


def project(given: str) -> str:
    """Raises Usage when neither option, environment nor login named one."""
    found = given or settings.read().project
    if not found:
        raise Usage("Which project? Say --project, or set BATON_PROJECT, or `baton login --project`.")
    return found


def environment(given: str) -> str:
    found = given or settings.read().environment
    if not found:
        raise Usage("Which environment? Say --environment test, acceptance or production, or set BATON_ENVIRONMENT.")
    return found


def rows(path: str, given_project: str, given_environment: str = "", **query: Any) -> list[Any]:
    """Every row of a list of the API, of the project and, when one was named on the command line, of the environment."""
    return list(portal().every(path, project=project(given_project), environment=given_environment, **query))


def moment(text: str) -> str:
    """As it was given: the portal reads a time without an offset in the environment's zone, and refuses one that is no single moment.

    Raises Usage.
    """
    try:
        return show.instant(text).isoformat()
    except ValueError:
        raise Usage(f"{text} is no moment: say it as 2026-12-01T02:00 or 2026-12-01T02:00:00Z.") from None


def release(ask: Portal, slug: str, number: str) -> dict[str, Any]:
    """The release with this number (or `latest`) in the project."""
    wanted = number.removeprefix("#")
    if wanted != "latest" and not wanted.isdecimal():
        raise Usage(f"{number} is no release: say its number, or latest.")
    query = {} if wanted == "latest" else {"number": wanted}
    rows = ask.get("releases/", project=slug, **query)["results"]
    if not rows:
        raise Usage(f"{slug} has no release {number}. `baton releases list` shows them.")
    newest: dict[str, Any] = max(rows, key=lambda row: row["number"])
    return newest


def group(ask: Portal, slug: str, kind: str, name: str) -> dict[str, Any]:
    """The failover group of this name or id."""
    rows = list(ask.every("groups/", project=slug, environment=kind))
    found = [row for row in rows if name in (row["name"], row["id"])]
    if len(found) == 1:
        only: dict[str, Any] = found[0]
        return only
    if found:
        raise Usage(f"{len(found)} groups are called {name} in {slug} › {kind}: say the id, from `baton groups list --json`.")
    names = ", ".join(sorted(row["name"] for row in rows)) or "none"
    raise Usage(f"There is no group {name} in {slug} › {kind}. Groups are: {names}.")
