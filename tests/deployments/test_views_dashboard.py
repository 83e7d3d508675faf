"""All projects at a glance."""

from django.contrib.auth.models import User
from django.test import Client

from deployments import rollout
from deployments.models import Release
from portal.models import Environment
from tests.deployments.conftest import Engine


def test_a_deployment_that_stands_failed_is_a_thing_to_look_at(
    client: Client, active: Release, filled: Environment, engine: Engine, developer: User
) -> None:
    engine.machines.failing["external01.erp"] = "no memory"
    run = engine.run(rollout.prepare(active, on=filled, by=developer, now=engine.now))
    client.force_login(developer)
    text = client.get("/").content.decode()
    assert "to look at" in text and "All well" not in text
    assert f">deployment {run.pk}</a> of release 1 failed: decide how it goes on" in text
