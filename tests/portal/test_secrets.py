"""Secrets at rest: sealed in the database, rotated, and never given back."""

import logging
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import IntegrityError, connection, transaction
from django.test import Client

from portal import properties, property_values, rotation, vault
from portal.errors import NotAllowed
from portal.models import Environment, Property, PropertyChange

SECRET = "tr0ub4dor-and-3"


@pytest.fixture(autouse=True)
def own_keys(tmp_path: Path, settings: Any) -> Path:
    settings.BATON_HOME = tmp_path
    return tmp_path / "property-keys"


def test_keys_are_made_once_and_read_by_their_owner_only(own_keys: Path) -> None:
    token = vault.seal("x")
    assert stat.S_IMODE(own_keys.stat().st_mode) == 0o600
    assert vault.unseal(token) == "x"
    own_keys.chmod(0o644)
    vault._opened = None
    vault.keys()
    assert stat.S_IMODE(own_keys.stat().st_mode) == 0o600


def test_keys_from_the_variable_win_and_are_checked(settings: Any) -> None:
    first, second = vault.new_key(), vault.new_key()
    settings.BATON_PROPERTY_KEYS = f"{first},{second}"
    assert vault.keys() == [first, second]
    settings.BATON_PROPERTY_KEYS = f"{first},short"
    with pytest.raises(ImproperlyConfigured, match="Key 2 in BATON_PROPERTY_KEYS is no Fernet key"):
        vault.keys()


def test_a_lost_key_is_said_with_the_remedy(own_keys: Path) -> None:
    token = vault.seal("x")
    vault.keep_keys([vault.new_key()])
    with pytest.raises(vault.Unreadable, match="Put that key back"):
        vault.unseal(token)


def test_a_secret_whose_key_is_lost_is_set_anew_or_deleted_as_the_refusal_says(
    client: Client, admin: User, test_environment: Environment, developer: User
) -> None:
    for key in ("a.password", "b.password", "c.password"):
        properties.set_value(test_environment, key, "hunter2", secret=True, by=developer)
    vault.keep_keys([vault.new_key()])
    with pytest.raises(vault.Unreadable, match=r"The secret a.password \(global\) cannot be read: .* or set the secret anew"):
        Property.objects.get(key="a.password").reveal()
    with pytest.raises(NotAllowed, match=r"c\.password"):
        property_values.resolve({"x": "${c.password}"}, {"c.password": Property.objects.get(key="c.password")})
    client.force_login(admin)
    page = f"/admin/portal/property/{Property.objects.get(key='a.password').pk}/change/"
    kept = client.post(page, {"environment": test_environment.pk, "key": "a.password", "value": "", "secret": "on"})
    assert "set the secret anew" in kept.content.decode()
    assert properties.set_value(test_environment, "a.password", SECRET, by=developer).reveal() == SECRET
    with pytest.raises(NotAllowed, match=r"The former secret of a.password is no longer kept"):
        properties.undo_last(test_environment, by=developer)
    properties.remove_value(test_environment, "b.password", by=developer)
    properties.declare_type(test_environment.project, "c.password", "number", by=developer)  # what nobody can read cannot be wrong
    said: list[str] = []
    rotation.begin()
    assert rotation.rotate(said.append) == 1, "the others do not wait for the lost one"
    assert any(line.startswith("c.password (global) on ") and "set it anew" in line for line in said)
    assert rotation.forget_former() == 1


def test_the_database_refuses_a_readable_secret(test_environment: Environment) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Property.objects.create(environment=test_environment, key="k", value=SECRET, secret=True)


@pytest.mark.django_db(transaction=True)
def test_no_secret_stands_in_the_files_of_the_database(tmp_path: Path, test_environment: Environment, developer: User) -> None:
    properties.set_value(test_environment, "erp.password", SECRET, secret=True, by=developer)
    properties.set_value(test_environment, "erp.password", SECRET + "-2", by=developer)
    properties.remove_value(test_environment, "erp.password", by=developer)
    properties.set_value(test_environment, "erp.token", SECRET, by=developer)  # readable at first
    properties.set_value(test_environment, "erp.token", SECRET, secret=True, by=developer)
    if connection.vendor != "sqlite":
        pytest.skip("reads SQLite's files")
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file = Path(connection.settings_dict["NAME"])
    for path in file.parent.glob(f"{file.name}*"):
        assert SECRET.encode() not in path.read_bytes(), path
    copy = sqlite3.connect(file)
    assert SECRET not in "\n".join(copy.iterdump())
    copy.close()


def test_nobody_is_given_a_secret(client: Client, admin: User, test_environment: Environment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client.force_login(admin)
    base = "/projects/webshop/test/properties"
    answers = [
        client.post(f"{base}/edit/", {"key": "erp.password", "scope": "|", "value": SECRET, "secret": "on"}),
        client.post(f"{base}/edit/", {"key": "Bad Key", "scope": "|", "value": SECRET, "secret": "on"}),
        client.post(f"{base}/edit/", {"key": "external01.failover.port", "scope": "|", "value": SECRET, "secret": "on"}),
        client.post(
            "/api/v1/properties/",
            {"project": "webshop", "environment": "test", "key": "queues.url", "value": SECRET, "secret": True},
            content_type="application/json",
        ),
    ]
    row = Property.objects.get(key="erp.password")
    assert row.reveal() == SECRET
    pages = [f"{base}/", f"{base}.csv", f"{base}/edit/?key=erp.password", "/api/v1/properties/", f"/api/v1/properties/{row.pk}/"]
    pages += [f"/admin/portal/property/{row.pk}/{page}" for page in ("change/", "history/", "delete/")]
    pages += ["/admin/portal/property/", "/admin/portal/propertychange/", "/admin/", "/projects/webshop/test/"]
    change = PropertyChange.objects.get(key="erp.password")
    pages.append(f"/admin/portal/propertychange/{change.pk}/change/")
    answers += [client.get(page) for page in pages]
    client.post(
        f"/admin/portal/property/{row.pk}/change/",
        {"environment": test_environment.pk, "key": "erp.password", "value": SECRET + "x", "secret": "on"},
    )
    answers.append(client.get(f"/admin/portal/property/{row.pk}/history/"))
    for answer in answers:
        assert SECRET not in answer.content.decode(), answer.request["PATH_INFO"]
    assert SECRET not in caplog.text


# -------------------------------------------------------------------------------------------------------------- rotation


@pytest.fixture
def many(test_environment: Environment, developer: User) -> Environment:
    edits = [properties.Edit(test_environment, f"secret.{number}", f"{SECRET}{number}", secret=True) for number in range(450)]
    properties.set_values(edits, by=developer)
    return test_environment


def readable(environment: Environment) -> bool:
    rows = Property.objects.filter(environment=environment)
    return {row.reveal() for row in rows} == {f"{SECRET}{number}" for number in range(450)}


def test_everything_is_sealed_anew_and_the_former_key_can_go(many: Environment, own_keys: Path) -> None:
    former = vault.keys()
    call_command("rotate_property_keys", verbosity=0)
    assert vault.keys()[1:] == former
    assert rotation.under_former_keys() == 0
    call_command("rotate_property_keys", "--forget-former", verbosity=0)
    assert len(vault.keys()) == 1
    assert readable(many)
    with pytest.raises(Exception):  # noqa: B017 - the former key opens nothing
        Fernet(former[0]).decrypt(Property.objects.all()[0].sealed.encode())


def test_a_rotation_that_was_broken_off_goes_on_with_its_key(many: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = rotation._replace, []

    def dies(*args: Any) -> int:
        if len(calls) == 250:
            raise KeyboardInterrupt
        calls.append(args)
        return replace(*args)

    monkeypatch.setattr(rotation, "_replace", dies)
    with pytest.raises(KeyboardInterrupt):
        call_command("rotate_property_keys", verbosity=0)
    begun = vault.keys()
    assert rotation.under_former_keys() > 0
    assert readable(many)
    with pytest.raises(CommandError, match="under a former key"):
        call_command("rotate_property_keys", "--forget-former")
    monkeypatch.setattr(rotation, "_replace", replace)
    call_command("rotate_property_keys", verbosity=0)
    assert vault.keys() == begun
    assert rotation.under_former_keys() == 0
    assert readable(many)


def test_a_value_set_meanwhile_is_not_overwritten(many: Environment, developer: User, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = rotation._replace

    def later(table: str, pk: str, column: str, row: object, token: object, fresh: bytes) -> int:
        if table == "portal_property" and row == Property.objects.get(key="secret.7").pk:
            properties.set_value(many, "secret.7", "newer", by=developer)
        return replace(table, pk, column, row, token, fresh)

    monkeypatch.setattr(rotation, "_replace", later)
    rotation.begin()
    rotation.rotate(lambda _: None)
    assert Property.objects.get(key="secret.7").reveal() == "newer"
    assert rotation.under_former_keys() == 0


def test_with_keys_from_the_variable_only_their_first_is_used(many: Environment, settings: Any) -> None:
    former, fresh = vault.keys(), vault.new_key()
    settings.BATON_PROPERTY_KEYS = ",".join([fresh, *former])
    call_command("rotate_property_keys", verbosity=0)
    with pytest.raises(NotAllowed, match="take them out of that variable"):
        rotation.forget_former()
    settings.BATON_PROPERTY_KEYS = fresh
    assert readable(many)
