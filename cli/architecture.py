"""`baton architecture …`: from the design to the machines, runtimes and routers of an environment."""

from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption

app = typer.Typer(help="What an environment has, beside what the design asks for.", no_args_is_help=True)


@app.command()
def diff(
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 when the environment is not as designed")] = False,
    json: JsonOption = False,
) -> None:
    """What applying the design would create, change and remove; nothing is changed."""
    found = given.portal().get(_path(project, environment))
    show.answer(found, json, _tell)
    if exit_code and found["changes"]:
        raise typer.Exit(1)


@app.command()
def apply(
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    seen: Annotated[str, typer.Option("--seen", help="`digest` of the difference that was agreed to: nothing else is applied")] = "",
    json: JsonOption = False,
) -> None:
    """Make the environment as designed, whole or not at all."""
    ask, path = given.portal(), _path(project, environment)
    show.answer(ask.post(path, {"seen": seen or ask.get(path)["digest"]}), json, lambda done: _tell(done, applied=True))


def _path(project: str, environment: str) -> str:
    return f"projects/{given.project(project)}/environments/{given.environment(environment)}/architecture/"


def _tell(found: dict[str, Any], applied: bool = False) -> None:
    for change in found["changes"]:
        show.line(f"{change['act']:7} {change['kind']} {change['name']}" if applied else change["sentence"])
    count = len(found["changes"])
    said = f"{count} change{'s' if count != 1 else ''}{' made' if applied else ''}" if count else "The environment is as designed"
    show.note(f"{said}. Digest: {found['digest']}")
