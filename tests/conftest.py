"""The cast: people of team Demo with one role each, and a stranger of another team."""

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections

from portal.models import Connector, Environment, Project, Role, Team
from tests import factories


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """SQLite in a file, as `make run` uses it: in memory, two connections lock each other out instead of waiting."""
    database = connections.databases["default"]
    if database["ENGINE"].endswith("sqlite3"):
        database.setdefault("TEST", {})["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")


@pytest.fixture(scope="session")
def django_db_use_migrations() -> bool:
    """Tables straight from the models, seconds sooner. `make check` asks whether migrations make the same ones; every journey runs them."""
    return False


@pytest.fixture(autouse=True)
def cheap_passwords(settings: Any) -> None:
    """Argon2 is slow on purpose; the cast of every test need not be."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def no_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents' calls ask the database where the test does: a kept thread would not see what the test has not committed."""

    async def here(work: Any, *args: Any, **kwargs: Any) -> Any:
        return await sync_to_async(work)(*args, **kwargs)

    monkeypatch.setattr("portal.threads.run", here)


@pytest.fixture
def team(db: None) -> Team:
    return Team.objects.create(name="Demo", slug="demo")


@pytest.fixture
def viewer(team: Team) -> User:
    return factories.person("viewer", team, Role.VIEWER)


@pytest.fixture
def developer(team: Team) -> User:
    return factories.person("developer", team, Role.DEVELOPER)


@pytest.fixture
def operator(team: Team) -> User:
    return factories.person("operator", team, Role.OPERATOR)


@pytest.fixture
def admin(team: Team) -> User:
    """Administrator of the team; also a superuser, for the admin site."""
    user = factories.person("admin", team, Role.ADMINISTRATOR)
    user.is_staff = user.is_superuser = True
    user.save()
    return user


@pytest.fixture
def stranger(db: None) -> User:
    return factories.person("stranger", Team.objects.create(name="Others", slug="others"), Role.ADMINISTRATOR)


@pytest.fixture
def webshop(team: Team) -> Project:
    return factories.project(team)


@pytest.fixture
def test_environment(webshop: Project) -> Environment:
    return webshop.environments.get(kind="test")


@pytest.fixture
def acceptance(webshop: Project) -> Environment:
    return webshop.environments.get(kind="acceptance")


@pytest.fixture
def erp(webshop: Project) -> Connector:
    return factories.failover_design(webshop)
