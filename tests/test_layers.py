"""The layers of docs/architecture.md, read from the imports themselves (also those inside functions)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APPS = ("portal", "runtimes", "deployments")  # imports go leftwards only
CLI = "cli"  # the `baton` command meets the portal over the public API only
ROOTS = ("portal.settings", "portal.urls", "portal.celery", "portal.asgi", "portal.wsgi")
# The one documented exception: Django's convention for Celery makes the app load with the package.
ALLOWED = {("portal", "portal.celery")}
NO_DJANGO = ("runtimes.protocol", "runtimes.spellings", "runtimes.agent", "runtimes.process")
DJANGO = ("django", "rest_framework", "celery", "kombu", "axes", "django_htmx", "django_filters", "drf_spectacular")

# Layers inside an app, outermost first; a part may import its own layer and those after it. Everything not named is a domain module.
LAYERS = ("edge", "tasks", "domain", "models", "words")
LAYER_OF = {
    "views": "edge",
    "api": "edge",
    "admin": "edge",
    "urls": "edge",
    "apps": "edge",  # AppConfig.ready() joins the layers (rule 5)
    "management": "edge",
    "tasks": "tasks",
    "models": "models",
    "spellings": "words",
    "protocol": "words",  # enums that models borrow
    "errors": "words",
    "vault": "words",  # fields of models that keep secrets
}


def modules() -> dict[str, Path]:
    found = {}
    for app in (*APPS, CLI):
        for path in sorted((ROOT / app).rglob("*.py")):
            if "migrations" not in path.parts:
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that `module` imports, with its line; `from package import module` names the module."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (whole if whole in MODULES else base), node.lineno


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def layer(module: str) -> str:
    parts = module.split(".")
    return LAYER_OF.get(parts[1], "domain") if len(parts) > 1 else "domain"


def violations(module: str, path: Path) -> list[str]:
    app = module.split(".")[0]
    found = []
    for target, line in imports(module, path):
        where = f"{path.relative_to(ROOT)}:{line} imports {target}: "
        if within(target, ROOTS) and module not in ROOTS and (module, target) not in ALLOWED:
            found.append(where + "the root modules are imported by nobody")
        if (within(module, (CLI,)) and within(target, (*APPS, *DJANGO))) or (within(target, (CLI,)) and not within(module, (CLI,))):
            found.append(where + "the command and the portal meet over the public API only")
        if within(module, (CLI,)):
            continue
        if within(module, NO_DJANGO):
            if within(target, DJANGO):
                found.append(where + "protocol, agent and process know no Django")
            if target.split(".")[0] in APPS and not within(target, NO_DJANGO):
                found.append(where + "protocol, agent and process import nothing from the apps")
            if within(module, ("runtimes.process",)) and within(target, ("runtimes.agent",)):
                found.append(where + "process never imports agent")
            if within(module, ("runtimes.protocol",)) and within(target, ("runtimes",)):
                found.append(where + "the wire imports nothing")
            continue
        if module in ROOTS or target.split(".")[0] not in APPS:
            continue
        other = target.split(".")[0]
        if APPS.index(other) > APPS.index(app):
            found.append(where + f"{app} stands left of {other}")
        if within(target, ("runtimes.agent", "runtimes.process")):
            found.append(where + "agent and process are programs of their own, met over the wire only")
        if other == app and target != app and LAYERS.index(layer(target)) < LAYERS.index(layer(module)):
            found.append(where + f"{layer(module)} does not import {layer(target)}")
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_and_left_only(module: str) -> None:
    assert violations(module, MODULES[module]) == []


def test_the_package_of_runtimes_is_empty_so_that_an_agent_loads_nothing_else() -> None:
    assert (ROOT / "runtimes" / "__init__.py").read_text() == ""


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("portal.design", "from runtimes.models import Machine", id="portal looks right"),
        pytest.param("runtimes.fleet", "def act():\n    import deployments.rollout", id="runtimes looks right, inside a function"),
        pytest.param("deployments.rollout", "from deployments import tasks", id="a domain module calls a task"),
        pytest.param("deployments.models", "from deployments.releases import build", id="models call the domain"),
        pytest.param("deployments.tasks", "from deployments.views import plans", id="a task calls a view"),
        pytest.param("portal.forms", "from portal.settings import BATON_HOME", id="somebody imports the root"),
        pytest.param("runtimes.agent.loop", "from django.conf import settings", id="the agent knows Django"),
        pytest.param("runtimes.agent.loop", "from runtimes import models", id="the agent knows the app"),
        pytest.param("runtimes.process.loop", "from runtimes.agent import home", id="process imports agent"),
        pytest.param("runtimes.fleet", "from runtimes.process import election", id="the portal calls into the process"),
        pytest.param("cli.releases", "from deployments import releases", id="the command calls the portal"),
        pytest.param("portal.design", "from cli import show", id="the portal calls the command"),
        pytest.param("runtimes.fleet", "from .api import views", id="relative: the domain calls the edge"),
    ],
)
def test_a_violation_would_be_seen(module: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for known in ("runtimes.models", "deployments.tasks", "deployments.views.plans", "runtimes.agent.home", "runtimes.process.election"):
        monkeypatch.setitem(MODULES, known, path)
    monkeypatch.setitem(MODULES, "runtimes.api.views", path)
    assert violations(module, path) != []
