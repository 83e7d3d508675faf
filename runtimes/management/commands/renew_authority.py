"""Renew an environment's certificate authority, retire the former one, replace one that is lost (docs/operating.md, Certificates)."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from portal.errors import NotAllowed
from portal.models import Environment
from runtimes import authority, fleet


class Command(BaseCommand):
    help = "Renew the certificate authority of an environment's routers; --retire ends the trust in the former one, --show only looks."

    REPLACED = (
        "Routers that run accept no certificate of it: once every machine has one (this command with --show says so), end the process etcd "
        "on all machines, one right after the other. Their agents start it again; leadership is gone for some seconds."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="its slug")
        parser.add_argument("environment", help="test, acceptance or production")
        act = parser.add_mutually_exclusive_group()
        act.add_argument("--retire", action="store_true", help="trust the former authority no more")
        act.add_argument("--replace", action="store_true", help="make another one, for the portal's former secret key is lost")
        act.add_argument("--show", action="store_true", help="say how it is, and change nothing")

    def handle(self, *, project: str, environment: str, retire: bool, replace: bool, show: bool, **_: Any) -> None:
        found = Environment.objects.filter(project__slug=project, kind=environment).first()
        if found is None:
            raise CommandError(f"There is no environment {environment} in a project {project}.")
        try:
            if retire:
                fleet.retire_authority(found, now=timezone.now())
            elif replace:
                fleet.replace_authority(found, now=timezone.now())
            elif not show:
                fleet.renew_authority(found, now=timezone.now())
        except NotAllowed as refusal:
            raise CommandError(refusal.sentence) from None
        self.stdout.write(authority.words(authority.standing(found, now=timezone.now())))
        if replace:
            self.stdout.write(self.REPLACED)
