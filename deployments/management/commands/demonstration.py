"""`manage.py demonstration prepare|deploy`: what the stack runner does to the database, as acts of the product."""

import argparse
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "prepare: migrate, and make the demonstration on the first start. deploy: deploy it for the first time, once the agents report."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("act", choices=["prepare", "deploy"])

    def handle(self, *args: Any, act: str, **options: Any) -> None:
        if act == "prepare":
            call_command("migrate", verbosity=0, interactive=False)
            self.stdout.write("  database     migrated")
