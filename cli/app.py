"""`baton`: the root of the commands, logging in, and what every command shares.

Exit status: 0 done as wished; 1 what was asked for ended badly (a deployment failed, a switch did not happen, `compare --exit-code` found a
difference); 2 wrong usage; 3 the portal refused, with its reason on standard error; 4 the portal cannot be reached; 5 a person must act
first (a manual step, with `--no-wait-for-people`); 130 interrupted: what was asked for goes on.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from cli import (
    architecture,
    deployments,
    fleet,
    given,
    groups,
    items,
    plans,
    projects,
    properties,
    releases,
    rules,
    schedules,
    settings,
    show,
)
from cli.portal import Failed, Refused

app = typer.Typer(
    name="baton",
    help="Design, release and deploy integrations in failover: Baton's portal from a terminal.",
    epilog=(
        "Exit status: 0 done; 1 what was asked for ended badly; 2 wrong usage; 3 the portal refused (its reasons are on standard error); "
        "4 the portal cannot be reached; 5 a person must act first; 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(releases.app, name="releases")
app.add_typer(deployments.app, name="deployments")
app.add_typer(plans.app, name="plan")
app.add_typer(properties.app, name="properties")
app.add_typer(groups.app, name="groups")
app.add_typer(items.app, name="items")
app.add_typer(rules.app, name="rules")
app.add_typer(rules.approvals, name="approvals")
app.add_typer(schedules.app, name="schedules")
app.add_typer(projects.app, name="project")
app.add_typer(architecture.app, name="architecture")
app.add_typer(fleet.machines, name="machines")
app.add_typer(fleet.runtimes, name="runtimes")
for command in (
    releases.preview,
    deployments.deploy,
    deployments.rollback,
    releases.compare,
    groups.switch,
):  # the daily ones, by their first name
    app.command()(command)


@app.command()
def login(
    url: Annotated[str, typer.Argument(help="Where the portal is, such as https://baton.example.com", envvar="BATON_URL")],
    user: Annotated[str, typer.Option("--user", "-u", prompt=True, help="Your name at the portal")],
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input")] = False,
    project: Annotated[str, typer.Option("--project", "-p", help="Remember this project for later commands")] = "",
    environment: Annotated[str, typer.Option("--environment", "-e", help="Remember this environment for later commands")] = "",
) -> None:
    """Get a token and keep it in a file that only you can read. The password is not kept."""
    password = sys.stdin.readline().rstrip("\n") if password_stdin else typer.prompt("Password", hide_input=True)
    address = url.rstrip("/")
    portal = given.portal(settings.Settings(url=address))
    try:
        token = portal.post("token/", {"username": user, "password": password})["token"]
    except Refused as refusal:
        raise Refused(f"{user} was not let in at {address}: {refusal.sentence}", http_status=refusal.http_status) from None
    kept = settings.stored()
    path = settings.save(settings.Settings(address, token, project or kept.project, environment or kept.environment))
    show.note(f"{user} is logged in at {address}; the token is in {path}.")


@app.command()
def logout() -> None:
    """Forget the token that is kept here. (An administrator ends it at the portal.)"""
    settings.save(replace(settings.stored(), token=""))
    show.note("The token is forgotten here.")


def main(run: Callable[[], Any] = app) -> None:
    """The command line, with the exit statuses above."""
    try:
        with given.opened:
            run()
    except Failed as failure:
        show.refusal(failure.sentence, failure.reasons)
        sys.exit(failure.status)
    except KeyboardInterrupt:
        show.warn("Interrupted; what was asked for goes on at the portal.")
        sys.exit(130)
    except BrokenPipeError:  # `baton … | head`
        sys.stderr.close()
        sys.exit(0)
