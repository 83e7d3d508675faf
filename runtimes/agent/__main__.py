"""`python -m runtimes.agent`: the agent of one machine.

First start: `--home DIR --portal URL --token TOKEN`. Later starts remember the portal and the credential.
SIGTERM or SIGINT ends the agent within 2 s and nothing else: router and runtimes go on, and the next start finds them.
`baton-agent status | switch | disable | enable | doctor` are for the machine's administrator (console.py).

Exit status: 0 ended by a signal, 2 cannot join (what to do is on standard error), 3 another agent has this home.
"""

import argparse
import asyncio
import os
import signal
import sys
from importlib import metadata
from pathlib import Path

import structlog

from runtimes.agent import console, linux
from runtimes.agent.client import JoinRefused, identify
from runtimes.agent.home import Home
from runtimes.agent.loop import Agent, to_portal
from runtimes.agent.spool import LogBuffer
from runtimes.protocol import LIFELINE_FD_ENV, PRESENCE_FD_ENV

log = structlog.get_logger()
END_SECONDS = 1.8
CANNOT_JOIN, SECOND_AGENT = 2, 3


def parse(arguments: list[str]) -> argparse.Namespace:
    others = "\n".join(f"  baton-agent {name:8} {what}" for name, what in console.COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="baton-agent",
        description="The Baton agent of one machine. `baton-agent run` is the same.",
        epilog=f"for the machine's administrator, with the portal up or down:\n{others}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", default=os.environ.get("BATON_AGENT_HOME"), help="folder for everything it keeps (BATON_AGENT_HOME)")
    parser.add_argument("--portal", default=os.environ.get("BATON_PORTAL_URL"), help="URL of the portal (BATON_PORTAL_URL)")
    parser.add_argument("--token", default=os.environ.get("BATON_JOIN_TOKEN"), help="one-time join token (BATON_JOIN_TOKEN)")
    parser.add_argument("--token-file", help="file that holds the join token")
    parser.add_argument("--etcd", default=os.environ.get("ETCD_BIN"), help="the etcd program to run (ETCD_BIN); default: found on PATH")
    options = parser.parse_args(arguments)
    if not options.home:
        parser.error("say where the agent keeps its files: --home DIR (or BATON_AGENT_HOME)")
    if options.portal and not options.portal.startswith(("http://", "https://")):
        parser.error(f"--portal must be an http:// or https:// URL, not {options.portal!r}")
    if options.token_file and not options.token:
        try:
            options.token = Path(options.token_file).read_text().strip()
        except OSError as error:  # a machine that has joined needs it no more
            print(f"baton-agent: the token file {options.token_file} cannot be read: {error.strerror}.", file=sys.stderr)
    return options


def version() -> str:
    try:
        return metadata.version("baton-integration")
    except metadata.PackageNotFoundError:
        return "source"


def set_up_logging(logs: LogBuffer) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            to_portal(logs),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )


async def work(home: Home, options: argparse.Namespace, logs: LogBuffer) -> int:
    """Join if need be, then run until a signal, or the end of the lifeline."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    lifeline = watch_lifeline(loop, end)
    ended = asyncio.create_task(end.wait())
    main_task = asyncio.create_task(_join_and_run(home, options, logs))
    try:
        await asyncio.wait({ended, main_task}, return_when=asyncio.FIRST_COMPLETED)
        if main_task.done():
            return main_task.result()
        log.info("agent_ends", text="The agent ends; router and runtimes go on.")
        loop.call_later(END_SECONDS, os._exit, 0)
        return 0
    finally:
        if lifeline is not None:
            loop.remove_reader(lifeline)
        for task in (ended, main_task):
            task.cancel()
        await asyncio.gather(ended, main_task, return_exceptions=True)


async def _join_and_run(home: Home, options: argparse.Namespace, logs: LogBuffer) -> int:
    try:
        identity = await identify(home, options.portal, options.token, version())
    except JoinRefused as error:
        log.error("cannot_join", text=f"The agent cannot join: {error}.")
        print(f"baton-agent: {error}.", file=sys.stderr)
        return CANNOT_JOIN
    log.info("agent_starts", text=f"The agent of {identity.machine} ({identity.project} / {identity.environment}) starts.")
    await Agent(home, identity, logs, version(), etcd=options.etcd).run()
    return 0


def watch_lifeline(loop: asyncio.AbstractEventLoop, end: asyncio.Event) -> int | None:
    """Under the stack runner: end when it ends (the keepers see to router and runtimes). Both descriptors are for the keepers only."""
    for name in (LIFELINE_FD_ENV, PRESENCE_FD_ENV):
        text = os.environ.get(name, "")
        try:
            os.set_inheritable(int(text), False)
        except (ValueError, OSError):
            os.environ.pop(name, None)
    if LIFELINE_FD_ENV not in os.environ:
        return None
    lifeline = int(os.environ[LIFELINE_FD_ENV])

    def ended() -> None:
        if os.read(lifeline, 64) == b"":
            loop.remove_reader(lifeline)
            end.set()

    loop.add_reader(lifeline, ended)
    return lifeline


def main(arguments: list[str] | None = None) -> int:
    command, rest = console.split(sys.argv[1:] if arguments is None else arguments)
    if command != "run":
        return console.main(command, rest)
    options = parse(rest)
    os.environ.pop("BATON_JOIN_TOKEN", None)  # not for the programs it starts
    logs = LogBuffer()
    set_up_logging(logs)
    home = Home(Path(options.home))
    if linux.lock(home.root / "agent.lock") is None:
        print(f"baton-agent: another agent is running on {home.root}; one home has one agent.", file=sys.stderr)
        return SECOND_AGENT
    return asyncio.run(work(home, options, logs))


if __name__ == "__main__":
    sys.exit(main())
