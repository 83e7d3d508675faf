"""`manage.py rotate_property_keys`: seal every secret anew under a new key. May be broken off and called again."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from portal import rotation, vault
from portal.errors import NotAllowed


class Command(BaseCommand):
    help = "Seal every secret property anew under a new key. Can be broken off and called again; former keys stay until --forget-former."

    def add_arguments(self, parser: ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--make", action="store_true", help="only print a new key, for BATON_PROPERTY_KEYS")
        group.add_argument("--forget-former", action="store_true", help="take former keys out of the file once nothing is under them")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["make"]:
                self.stdout.write(vault.new_key())
            elif options["forget_former"]:
                self.stdout.write(f"Former keys that are gone: {rotation.forget_former()}. Backups from before can no longer be read.")
            else:
                self.stdout.write(rotation.begin())
                done = rotation.rotate(self.stdout.write)
                self.stdout.write(f"{done} values were sealed anew; none is under a former key. Remove those with --forget-former.")
        except NotAllowed as refusal:
            raise CommandError(refusal.sentence) from None
