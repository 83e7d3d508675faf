"""`baton properties …`: values of placeholders per environment and scope. A secret's value is written, never read."""

import sys
from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption
from cli.portal import Usage

app = typer.Typer(help="Values of placeholders per environment.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The placeholder, such as erp.url")]
MachineOption = Annotated[str, typer.Option("--machine", help="Only on this machine")]
ConnectorOption = Annotated[str, typer.Option("--connector", help="Only in this connector; with --machine: only in this runtime")]


@app.command("list")
def list_properties(
    search: Annotated[str, typer.Argument(help="Part of the key")] = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Values and their scopes. Secrets are shown as set."""
    slug, kind = given.project(project), given.environment(environment)
    show.listed(
        given.rows("properties/", slug, kind, search=search),
        json,
        {
            "key": lambda row: row["key"],
            "scope": lambda row: row["scope"],
            "value": lambda row: "•••• (set)" if row["secret"] else row["value"],
            "changed": lambda row: show.moment(row["updated_at"]),
        },
        empty=f"No property of {slug} › {kind} {f'has {search} in its key' if search else 'is set'}.",
    )


@app.command("set")
def set_property(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(help="The value; - reads it from standard input, so that a secret is in no command line")],
    machine: MachineOption = "",
    connector: ConnectorOption = "",
    secret: Annotated[bool | None, typer.Option("--secret/--no-secret", help="Keep it unreadable")] = None,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Set a value; an existing one of the same key and scope is replaced."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    body: dict[str, Any] = {"project": slug, "environment": kind, "key": key, "machine": machine, "connector": connector}
    body["value"] = sys.stdin.read().rstrip("\n") if value == "-" else value
    if secret is not None:
        body["secret"] = secret
    answer = ask.post("properties/", body)
    if json:
        show.document(answer)
        return
    show.note(f"{key} is set for {answer['scope']} on {slug} › {kind}. It takes effect with the next deployment.")


@app.command()
def unset(
    key: KeyArgument,
    machine: MachineOption = "",
    connector: ConnectorOption = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
) -> None:
    """Remove the value of exactly this scope."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    rows = [
        row
        for row in ask.every("properties/", project=slug, environment=kind, key=key)
        if (row["machine"], row["connector"]) == (machine, connector)
    ]
    if not rows:
        raise Usage(f"{key} has no value in that scope of {slug} › {kind}: `baton properties list {key}` shows where it has.")
    ask.ask("DELETE", f"properties/{rows[0]['id']}/")
    show.note(f"{key} is removed from {rows[0]['scope']} on {slug} › {kind}.")


@app.command()
def history(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Only this one")] = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Who changed which value when, the newest first. Of a secret: only that it changed."""
    slug, kind = given.project(project), given.environment(environment)
    show.listed(
        given.rows("property-changes/", slug, kind, key=key),
        json,
        {
            "when": lambda row: show.moment(row["at"]),
            "who": lambda row: row["by"],
            "key": lambda row: row["key"],
            "scope": lambda row: row["scope"],
            "before": lambda row: _shown(row["before"], row["secret_before"]),
            "after": lambda row: _shown(row["after"], row["secret_after"]),
            "how": lambda row: row["cause"],
        },
        empty=f"No value {f'of {key} ' if key else ''}was changed on {slug} › {kind} yet.",
    )


@app.command()
def undo(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Take back the last act that changed values, whole; once more does it again."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    last = ask.get("property-changes/", project=slug, environment=kind)["results"]
    if not last:
        raise Usage(f"There is nothing to undo on {slug} › {kind}.")
    done = ask.post("property-undo/", {"project": slug, "environment": kind, "act": last[0]["act"]})
    what = f"{last[0]['by'] or 'Nobody'}'s change of {show.moment(last[0]['at'])}"
    show.answer(done, json, lambda rows: show.note(f"{what} is undone: {', '.join(sorted({row['key'] for row in rows}))}."))


@app.command()
def types(project: ProjectOption = "", json: JsonOption = False) -> None:
    """What the values of keys have to be, and by what that is known."""
    slug = given.project(project)
    show.listed(
        given.portal().get("property-types/", project=slug),
        json,
        {"key": lambda row: row["key"], "type": lambda row: row["type"], "because": lambda row: row["because"]},
        empty=f"No key of {slug} has a type yet: `baton properties type KEY TYPE` gives it one.",
    )


@app.command("type")
def set_type(
    key: KeyArgument,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help='Such as number, port or url; "" guesses it again')],
    project: ProjectOption = "",
) -> None:
    """Declare the type of a key. Refused while a value is not of it."""
    told = given.portal().ask("PUT", "property-types/", json={"project": given.project(project), "key": key, "type": kind})
    show.note(f"{key}: {told['type']} ({told['because']}).")


def _shown(value: str | None, secret: bool) -> str:
    return "••••" if secret else "–" if value is None else value
