"""`baton rules …` and `baton approvals …`: what an environment asks before a release is activated or deployed there."""

from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, MomentArgument, ProjectOption
from cli.portal import Portal, Usage
from cli.releases import ReleaseArgument

app = typer.Typer(help="Rules of an environment: order, approvals, windows and freezes.", no_args_is_help=True)
approvals = typer.Typer(help="Approvals of a release for an environment.", no_args_is_help=True)

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@app.command("show")
def show_rules(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """The rules, whether it is open now, and until when not."""
    show.answer(given.portal().get(_path(environment, project)), json, _tell)


@app.command("set")
def set_rules(
    approvals_needed: Annotated[int | None, typer.Option("--approvals", help="So many people, not the requester")] = None,
    approval_days: Annotated[int | None, typer.Option("--approval-days", help="A request stays open so long")] = None,
    in_order: Annotated[bool | None, typer.Option("--in-order/--any-order", help="Only after success in the environment before")] = None,
    time_zone: Annotated[str | None, typer.Option("--time-zone", help="Such as Europe/Amsterdam")] = None,
    expires: Annotated[int | None, typer.Option("--expires-after", help="Minutes after which a late activation is not carried out")] = None,
    window: Annotated[
        list[str] | None, typer.Option("--window", help="mon-fri@08:00-17:00; repeatable; replaces all windows; none: always open")
    ] = None,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Change some of the rules (administrators)."""
    wish: dict[str, Any] = {
        "approvals": approvals_needed, "approval_days": approval_days, "in_order": in_order, "time_zone": time_zone,
        "expires_after_minutes": expires,
    }  # fmt: skip
    body = {name: value for name, value in wish.items() if value is not None}
    if window:
        body["windows"] = [] if window == ["none"] else [_window(text) for text in window]
    if not body:
        raise Usage("Say what shall change: --approvals, --window, … (`baton rules set --help`).")
    show.answer(given.portal().ask("PATCH", _path(environment, project), json=body), json, _tell)


@app.command()
def move(
    direction: Annotated[str, typer.Argument(help="earlier or later, by one place")],
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Another place for the environment in the order of promotion (administrators)."""
    path = _path(environment, project).removesuffix("rules/") + "order/"
    show.answer(given.portal().post(path, {"direction": direction}), json, lambda it: show.note(f"It is number {it['position'] + 1} now."))


@app.command()
def freeze(
    starts: MomentArgument,
    ends: MomentArgument,
    reason: Annotated[str, typer.Argument(help="Whoever is refused reads it")],
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Forbid activating and deploying for a time (operators)."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    body = {"starts_at": given.moment(starts), "ends_at": given.moment(ends), "reason": reason}
    made = ask.post(f"projects/{slug}/environments/{kind}/freezes/", body)
    show.answer(made, json, lambda it: show.note(f"Freeze {it['id']}: {slug} › {kind} until {show.moment(it['ends_at'])}: {it['reason']}"))


@app.command()
def lift(
    freeze_id: Annotated[int, typer.Argument(metavar="FREEZE", help="Its id, from `baton rules show`")],
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
) -> None:
    """End or take back a freeze (operators)."""
    slug, kind = given.project(project), given.environment(environment)
    given.portal().ask("DELETE", f"projects/{slug}/environments/{kind}/freezes/{freeze_id}/")
    show.note(f"Freeze {freeze_id} of {slug} › {kind} is lifted.")


def _path(environment: str, project: str) -> str:
    return f"projects/{given.project(project)}/environments/{given.environment(environment)}/rules/"


def _window(text: str) -> dict[str, str]:
    days, at, hours = text.partition("@")
    opens, dash, closes = hours.partition("-")
    if not at or not dash:
        raise Usage(f"--window {text} is no window: say it as mon-fri@08:00-17:00 or sat,sun@22:00-02:00.")
    found = ""
    for part in days.lower().split(","):
        first, dash, last = part.strip().partition("-")
        names = [name.lower() for name in DAYS]
        if first not in names or (dash and last not in names):
            raise Usage(f"--window {text}: {part} is no day; say mon, tue, wed, thu, fri, sat or sun.")
        start, end = names.index(first), names.index(last if dash else first)
        found += "".join(str(day % 7) for day in range(start, end + 1 if end >= start else end + 8))
    return {"days": "".join(sorted(set(found))), "opens": opens.strip(), "closes": closes.strip()}


def _tell(found: dict[str, Any]) -> None:
    order = "after success in the environment before" if found["in_order"] else "in any order"
    show.note(f"Releases come {order}; {found['approvals']} approvals; times in {found['time_zone']}.")
    show.note(f"A scheduled activation expires {found['expires_after_minutes']} minutes late.")
    for window in found["windows"]:
        show.note(f"Open {', '.join(DAYS[int(day)] for day in window['days'])} {window['opens']}–{window['closes']}.")
    for row in found["freezes"]:
        show.note(f"Freeze {row['id']}: {show.moment(row['starts_at'])} until {show.moment(row['ends_at'])}: {row['reason']}")
    if not found["open_now"]:
        show.warn(found["sentence"])


# ---------------------------------------------------------------------------------------------------------------- approvals


@approvals.command("list")
def list_approvals(environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Requests, newest first, and what each still lacks."""
    rows = given.rows("approvals/", project, environment)
    show.listed(
        rows,
        json,
        {
            "#": lambda row: row["id"],
            "environment": lambda row: row["environment"],
            "release": lambda row: row["release_number"],
            "status": lambda row: show.status(row["status"]),
            "by": lambda row: row["created_by"],
            "approved by": lambda row: ", ".join(one["person"] for one in row["approvals"] if not one["withdrawn_at"]),
            "lacking": lambda row: row["lacking"] or row["reason"],
        },
        empty="Nobody has asked for an approval: `baton approvals request RELEASE`.",
    )


@approvals.command()
def request(
    release: ReleaseArgument,
    note: Annotated[str, typer.Option("--note", "-m", help="For those who approve")] = "",
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """Ask for approval of a release on an environment, with the values of now."""
    ask, slug, kind = given.portal(), given.project(project), given.environment(environment)
    chosen = given.release(ask, slug, release)
    made = ask.post("approvals/", {"release": chosen["id"], "environment": kind, "note": note})
    show.answer(
        made, json, lambda it: show.note(f"Request {it['id']}: release {chosen['number']} for {slug} › {kind}. {it['lacking']}".strip())
    )


RequestArgument = Annotated[int, typer.Argument(metavar="REQUEST", help="Its id, from `baton approvals list`")]
CommentOption = Annotated[str, typer.Option("--comment", "-m")]


@approvals.command()
def approve(request_id: RequestArgument, comment: CommentOption = "", json: JsonOption = False) -> None:
    """Say yes. The portal refuses it to the requester, and when values changed since."""
    _decide(given.portal(), request_id, "approve", {"comment": comment}, json)


@approvals.command()
def refuse(
    request_id: RequestArgument, reason: Annotated[str, typer.Argument(help="Why; the requester reads it")], json: JsonOption = False
) -> None:
    """Say no; the request is closed."""
    _decide(given.portal(), request_id, "reject", {"comment": reason}, json)


@approvals.command()
def withdraw(request_id: RequestArgument, json: JsonOption = False) -> None:
    """Take back your request, or your own approval of another's."""
    _decide(given.portal(), request_id, "withdraw", None, json)


def _decide(ask: Portal, request_id: int, act: str, body: dict[str, Any] | None, json: bool) -> None:
    done = ask.post(f"approvals/{request_id}/{act}/", body)
    show.answer(done, json, lambda it: show.note(f"Request {it['id']} is {it['status']}. {it['lacking']}".strip()))
