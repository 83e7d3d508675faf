"""`baton items …`: what waits in each flow, and the failed items that its machine keeps: look at one, try again, discard.

They lie on the machines: a command asks the portal, the portal the machine's agent, and the command waits for the answer.
"""

import time
from typing import Annotated, Any

import typer

from cli import given, show
from cli.given import EnvironmentOption, JsonOption, ProjectOption
from cli.portal import Portal, Refused, Usage

app = typer.Typer(help="Items that wait, and failed items.", no_args_is_help=True)

POLL_SECONDS = 0.3
ANSWER_SECONDS = 20.0  # the portal gives a machine 15

RuntimeArgument = Annotated[str, typer.Argument(metavar="RUNTIME", help="Machine and connector, such as external01.erp")]
FlowArgument = Annotated[str, typer.Argument(metavar="FLOW", help="Its name or key")]
ItemsArgument = Annotated[list[str] | None, typer.Argument(metavar="ITEM", help="Keys, as `baton items failed` shows them")]
AllOption = Annotated[bool, typer.Option("--all", help="Every failed item of the flow there")]


@app.command("list")
def list_flows(
    failed: Annotated[bool, typer.Option("--failed", help="Only flows that keep failed items")] = False,
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """What waits in the source, is in flight and failed, per flow and runtime, as last reported."""
    slug, kind = given.project(project), given.environment(environment)
    rows = [
        {"runtime": runtime["runtime"], "last_report_at": runtime["last_report_at"], **flow}
        for runtime in given.rows("runtimes/", slug, kind)
        for flow in runtime["flows"]
        if flow["kept"] != 0 or not failed
    ]
    show.listed(
        sorted(rows, key=lambda row: (row["name"], row["runtime"])),
        json,
        {
            "flow": lambda row: row["name"],
            "runtime": lambda row: row["runtime"],
            "state": _state,
            "waiting #": lambda row: row["waiting"],
            "in flight #": lambda row: row["pending"],
            "failed #": _kept,
            "to be tried again #": lambda row: row["again"],
            "machine heard": lambda row: show.age(row["last_report_at"]),
            "why": _why,
        },
        empty="No flow has failed items." if failed else f"No flow runs on {slug} › {kind} yet: deploy a release.",
    )


def _state(row: dict[str, Any]) -> str:
    if not row["on"]:
        return "Off"
    return "On, silent" if row.get("silent_since") else "On, not delivering" if row.get("undelivered_since") else "On"


def _why(row: dict[str, Any]) -> str:
    since = row.get("silent_since")
    told = f"its source has not answered since {show.moment(since)}" if since else ""
    return "; ".join(part for part in (row["reason"], told) if part)


def _kept(row: dict[str, Any]) -> str:
    if row["kept"] is None:
        return "unknown"
    return f"{row['kept']} (counted {show.age(row['kept_at'])})" if row.get("kept_at") else str(row["kept"])


@app.command("failed")
def list_failed(
    runtime: RuntimeArgument, flow: FlowArgument, environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False
) -> None:
    """The failed items that the runtime's machine keeps."""
    found = _ask("list", runtime, flow, [], environment, project)
    show.answer(found, json, lambda told: _table(told["items"]))
    left = found["total"] - len(found["items"])
    if left > 0 and not json:
        show.warn(f"And {left} more.")


@app.command()
def view(
    runtime: RuntimeArgument,
    flow: FlowArgument,
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Its key, as `baton items failed` shows it")],
    environment: EnvironmentOption = "",
    project: ProjectOption = "",
    json: JsonOption = False,
) -> None:
    """What is in one of them, up to 64 KB, secrets masked; bytes that are no text as a hexadecimal dump."""
    show.answer(_ask("view", runtime, flow, [item], environment, project), json, lambda told: typer.echo(told["content"]))


@app.command()
def retry(
    runtime: RuntimeArgument, flow: FlowArgument, items: ItemsArgument = None, every: AllOption = False,
    environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False,
) -> None:  # fmt: skip
    """Have them tried again, under the same message ids."""
    _act("retry", runtime, flow, items or [], every, environment, project, json=json)


@app.command()
def discard(
    runtime: RuntimeArgument, flow: FlowArgument, items: ItemsArgument = None, every: AllOption = False,
    environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False,
) -> None:  # fmt: skip
    """Delete them for good."""
    _act("discard", runtime, flow, items or [], every, environment, project, json=json)


def _act(act: str, runtime: str, flow: str, keys: list[str], every: bool, environment: str, project: str, *, json: bool) -> None:
    if bool(keys) == every:
        raise Usage(f"Which items? Name them, or say --all: `baton items failed {runtime} {flow}` shows them.")
    found = _ask(act, runtime, flow, keys, environment, project)
    word = "to be tried again" if act == "retry" else "discarded"

    def told(answer: dict[str, Any]) -> str:
        count = answer["acted"] if answer["acted"] is not None else None if every else len(keys)  # an older agent does not say
        what = "All failed items" if count is None else "1 item" if count == 1 else f"{count} items"
        named = ", ".join(item["name"] or item["item"] for item in answer["done"][:5] if item["name"] or item["item"])
        which = f" ({named}{', …' if len(answer['done']) > 5 else ''})" if named else ""
        return f"{what} of {flow} on {runtime}{which}: {word}. {answer['total']} left."

    show.answer(found, json, lambda answer: show.note(told(answer)))


@app.command("history")
def history(runtime: RuntimeArgument, environment: EnvironmentOption = "", project: ProjectOption = "", json: JsonOption = False) -> None:
    """Who tried failed items of a runtime again or discarded them, and which."""
    row = _runtime(runtime, environment, project)
    show.listed(
        given.portal().get(f"runtimes/{row['id']}/item-acts/"),
        json,
        {
            "when": lambda act: show.moment(act["created_at"]),
            "who": lambda act: act["actor"],
            "flow": lambda act: act["flow_name"] or act["flow"],
            "act": lambda act: "tried again" if act["act"] == "retry" else "discarded",
            "items #": lambda act: "unknown" if act["acted"] is None else act["acted"],
            "which": lambda act: ", ".join(item["name"] or item["item"] or item["key"] for item in act["done"]) or act["problem"],
        },
        empty=f"Nobody did anything to failed items of {runtime} yet.",
    )


def _table(items: list[dict[str, Any]]) -> None:
    cells = [
        (item["key"], item["name"] or item["item"], item["size"], item["tries"], show.moment(item["at"]), item["reason"]) for item in items
    ]
    show.table(["item", "name", "bytes #", "tries #", "failed", "reason"], cells, empty="No failed items are kept there.")


def _ask(act: str, runtime: str, flow: str, keys: list[str], environment: str, project: str) -> dict[str, Any]:
    """The machine's answer. Raises Usage for what is not there, Refused with the machine's own words or when it does not answer."""
    ask, row = given.portal(), _runtime(runtime, environment, project)
    path = f"runtimes/{row['id']}/failed-items/"
    found = ask.post(path, {"flow": _flow(row, flow), "act": act, "keys": keys})
    answer = _answer(ask, f"{path}{found['inquiry']}/")
    if answer["status"] != "answered":
        raise Refused(f"{row['machine']} did not answer within {ANSWER_SECONDS:.0f} s: is its agent running?")
    if answer["problem"]:
        raise Refused(f"{row['machine']}: {answer['problem']}")
    return answer


def _answer(ask: Portal, path: str) -> dict[str, Any]:
    ends = time.monotonic() + ANSWER_SECONDS
    while True:
        found: dict[str, Any] = ask.get(path)
        if found["status"] != "pending" or time.monotonic() > ends:
            return found
        time.sleep(POLL_SECONDS)


def _runtime(name: str, environment: str, project: str) -> dict[str, Any]:
    slug, kind = given.project(project), given.environment(environment)
    machine, _, connector = name.partition(".")
    rows = given.rows("runtimes/", slug, kind, machine=machine, connector=connector)
    if len(rows) != 1:
        raise Usage(f"{slug} › {kind} has no runtime {name}: `baton runtimes list` shows them.")
    found: dict[str, Any] = rows[0]
    return found


def _flow(row: dict[str, Any], name: str) -> str:
    found = [flow["flow"] for flow in row["flows"] if name in (flow["name"], flow["flow"])]
    if not found:
        names = ", ".join(sorted(flow["name"] for flow in row["flows"])) or "none"
        raise Usage(f"{row['runtime']} reports no flow {name}. It runs: {names}.")
    return str(found[0])
