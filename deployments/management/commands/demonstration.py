"""`manage.py demonstration prepare|deploy`: what the stack runner does to the database, as acts of the product."""

import argparse
import os
import time
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.utils import timezone

from deployments import demonstration
from deployments.models import LIVE, RunStatus
from portal import readiness
from portal.errors import NotAllowed
from portal.stack import PORTS_ENV, say

PATIENCE = 60.0  # seconds for agents to report, and for what stands against a deployment to go


class Command(BaseCommand):
    help = "prepare: migrate, and make the demonstration on the first start. deploy: deploy it for the first time, once the agents report."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("act", choices=["prepare", "deploy"])

    def handle(self, *args: Any, act: str, **options: Any) -> None:
        place = demonstration.Place(
            home=settings.BATON_HOME,
            queues_url=settings.REDIS_URL,
            queues_prefix=settings.BATON_PREFIX,
            failover_ports={name: int(port) for name, port in (pair.split("=") for pair in os.environ[PORTS_ENV].split(","))},
        )
        try:
            if act == "prepare":
                call_command("migrate", verbosity=0, interactive=False)
                self._say("database", f"migrated; {demonstration.prepare(place)}")
            else:
                self._deploy(place)
        except DatabaseError as error:
            raise CommandError(f"The database does not do what it should: {error}") from error
        except NotAllowed as refusal:
            raise CommandError(" ".join([refusal.sentence, *refusal.reasons])) from refusal

    def _say(self, part: str, text: str) -> None:
        say(f"  {part:<12} {text}")

    def _deploy(self, place: demonstration.Place) -> None:
        test = demonstration.environment()
        if test is None or not (due := demonstration.deployment_due(test, place)):
            return
        since = readiness.stack_started_at() or timezone.now()
        deadline = time.monotonic() + PATIENCE
        while (silent := demonstration.unheard(test, since=since)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if silent:
            self._say("attention", f"no report from {', '.join(silent)} yet; see logs/{silent[0]}.log")
        while True:
            try:
                deployment = demonstration.begin(due, test, place)
                break
            except NotAllowed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        self._say("deployment", f"{deployment.release} goes to Test: watch it at {settings_url(deployment.get_absolute_url())}")
        told: set[int] = set()
        while True:
            deployment.refresh_from_db()
            for line in demonstration.news(deployment, told):
                self._say("deployment", line)
            if deployment.status not in LIVE:
                break
            time.sleep(0.2)
        took = ((deployment.ended_at or timezone.now()) - deployment.created_at).total_seconds()
        self._say("deployment", f"{RunStatus(deployment.status).label.lower()} after {took:.1f} s")


def settings_url(path: str) -> str:
    """The address of a page of this stack's portal."""
    return f"http://127.0.0.1:{os.environ.get('BATON_STACK_PORT', '8000')}{path}"
