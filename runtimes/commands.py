"""Commands on machines: the portal names one, the machine's own list says what it is, its agent runs it once."""

from datetime import datetime

from django.db import transaction

from runtimes import fleet
from runtimes.models import LIVE_COMMANDS, CommandRun, Machine
from runtimes.protocol import CommandStatus


def refused(machine: Machine, name: str) -> str:
    """Why the machine's own list would not let a command run, as it told last; empty when it would, or its agent is too old to tell."""
    if machine.listed_commands is None or name in machine.listed_commands:
        return ""
    has = ", ".join(machine.listed_commands) or "no command"
    return f"{machine.name} does not run {name}: its own list (commands.toml) has {has}."


@transaction.atomic
def ask(machine: Machine, name: str, *, timeout_seconds: int, actor: str, now: datetime) -> CommandRun:
    """Have the machine's agent run a command of the machine's list."""
    run = CommandRun.objects.create(machine=machine, name=name, timeout_seconds=timeout_seconds, actor=actor, created_at=now)
    fleet.touch(machine)
    return run


@transaction.atomic
def take_back(run_id: str, *, now: datetime) -> None:
    """The agent ends it, if it runs. Nothing happens to one that has ended."""
    run = CommandRun.objects.filter(pk=run_id).select_related("machine").first()
    if run is not None and CommandRun.objects.filter(pk=run_id, status__in=LIVE_COMMANDS).update(
        status=CommandStatus.CANCELLED, reason="Its order was taken back.", ended_at=now
    ):
        fleet.touch(run.machine)
