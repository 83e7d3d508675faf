"""`manage.py runstack`: the whole product on this host (what `make run` starts)."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from portal import env, stack
from runtimes.protocol import LIFELINE_FD_ENV, PRESENCE_FD_ENV

MACHINES = stack.Machines(("core01", "external01", "external02"), LIFELINE_FD_ENV, PRESENCE_FD_ENV)


class Command(BaseCommand):
    help = (
        "Run portal, broker, worker, beat and the demonstration's three agents until Ctrl-C. PORT and BATON_HOME come from the environment."
    )
    requires_system_checks: list[str] = []  # the child that migrates makes them

    def handle(self, *args: Any, **options: Any) -> None:
        stack.run(settings.BATON_HOME, env.number("PORT", 8000), MACHINES)
