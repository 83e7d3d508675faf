"""Search within a project: everything that has a name, wherever it stands. A fixed number of queries; of properties, keys only."""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from django.db.models import Q
from django.urls import reverse

from deployments.models import Deployment, Release
from portal.models import Environment, Flow, Group, Project, Property, System
from runtimes.models import FailoverGroup, Machine, Runtime

MOST = 20  # of each kind


@dataclass(frozen=True)
class Hit:
    name: str
    note: str
    url: str
    environment: Environment | None = None


@dataclass(frozen=True)
class Section:
    title: str
    icon: str
    hits: list[Hit]

    @property
    def full(self) -> bool:
        """There may be more."""
        return len(self.hits) >= MOST


def find(project: Project, text: str, *, kind: str) -> list[Section]:
    """What of the project bears `text` in its name; `kind` is the environment to which hits without one lead. Empty for no text."""
    text = text.strip().lstrip("#").removeprefix("${").removesuffix("}")
    if not text:
        return []
    slug = project.slug
    environments = {environment.pk: environment for environment in project.environments.all()}
    sections = [
        Section("Systems", "affiliate", _systems(project, text)),
        Section("Flows", "route", _flows(project, text)),
        Section("Groups", "arrows-left-right", _groups(project, text, environments)),
        Section("Machines", "server-2", _machines(slug, text, environments)),
        Section("Runtimes", "puzzle", _runtimes(slug, text, environments)),
        Section("Properties", "variable", _properties(slug, text, environments, kind)),
        Section("Releases", "package", _releases(project, text)),
        Section("Deployments", "rocket", _deployments(text, environments)),
    ]
    return [section for section in sections if section.hits]


def _systems(project: Project, text: str) -> list[Hit]:
    found = System.objects.filter(project=project).filter(Q(name__icontains=text) | Q(connectors__name__icontains=text)).distinct()
    return [Hit(row.name, row.description, reverse("solution", args=[project.slug])) for row in found[:MOST]]


def _flows(project: Project, text: str) -> list[Hit]:
    found = Flow.objects.filter(connector__project=project, name__icontains=text).select_related("connector").order_by("name")
    return [
        Hit(row.name, f"connector {row.connector.name}", reverse("flow", args=[project.slug, row.connector.name, row.name]))
        for row in found[:MOST]
    ]


def _groups(project: Project, text: str, environments: dict[int, Environment]) -> list[Hit]:
    """Where they run; those that run nowhere yet, in Create."""
    running = list(
        FailoverGroup.objects.filter(environment__in=environments, name__icontains=text)
        .select_related("group__connector")
        .order_by("name", "environment__position")[:MOST]
    )
    hits = []
    for row in running:
        environment = environments[row.environment_id]
        address = f"{reverse('groups', args=[project.slug, environment.kind])}#group-{row.pk}"
        hits.append(Hit(row.name, f"connector {row.group.connector.name}", address, environment))
    drawn = Group.objects.filter(connector__project=project, name__icontains=text).exclude(pk__in={row.group_id for row in running})
    flows = reverse("flows", args=[project.slug])
    return hits + [
        Hit(row.name, f"connector {row.connector.name}, runs nowhere yet", flows) for row in drawn.select_related("connector")[:MOST]
    ]


def _machines(slug: str, text: str, environments: dict[int, Environment]) -> list[Hit]:
    found = Machine.objects.filter(environment__in=environments, name__icontains=text).order_by("name", "environment__position")[:MOST]
    return [
        Hit(row.name, row.get_kind_display(), reverse("machine", args=[slug, environment.kind, row.name]), environment)
        for row in found
        for environment in [environments[row.environment_id]]
    ]


def _runtimes(slug: str, text: str, environments: dict[int, Environment]) -> list[Hit]:
    """`external01.erp` is a machine and a connector."""
    machine, dot, connector = text.partition(".")
    wanted = Q(connector__name__icontains=text)
    if dot:
        wanted = Q(machine__name__iendswith=machine, connector__name__istartswith=connector)
    found = Runtime.objects.filter(wanted, environment__in=environments).select_related("machine", "connector")
    hits = []
    for row in found.order_by("machine__name", "connector__name", "environment__position")[:MOST]:
        environment = environments[row.environment_id]
        address = f"{reverse('machine', args=[slug, environment.kind, row.machine.name])}?tab=runtimes"
        hits.append(Hit(row.key, "", address, environment))
    return hits


def _properties(slug: str, text: str, environments: Iterable[int], kind: str) -> list[Hit]:
    found = Property.objects.filter(environment__in=environments, key__icontains=text).order_by("key")
    keys = found.values_list("key", flat=True).distinct()
    page = reverse("property-key", args=[slug, kind])
    return [Hit(key, "", f"{page}?key={quote(key)}") for key in keys[:MOST]]


def _releases(project: Project, text: str) -> list[Hit]:
    wanted = Q(name__icontains=text) | Q(note__icontains=text) | Q(digest__startswith=text.lower())
    if text.isdecimal() and len(text) < 9:
        wanted |= Q(number=int(text))
    found = Release.objects.filter(wanted, project=project).defer("content").order_by("-number")[:MOST]
    return [Hit(f"{row.number} {row.name}", row.note[:120], reverse("release", args=[project.slug, row.number])) for row in found]


def _deployments(text: str, environments: dict[int, Environment]) -> list[Hit]:
    """By number, or by the release."""
    wanted = Q(release__name__icontains=text)
    if text.isdecimal() and len(text) < 9:
        wanted |= Q(pk=int(text)) | Q(release__number=int(text))
    found = Deployment.objects.filter(wanted, environment__in=environments).select_related("release", "environment__project")
    hits = []
    for row in found.order_by("-pk")[:MOST]:
        note = f"of release {row.release.number}, {row.get_status_display().lower()}"
        hits.append(Hit(f"Deployment {row.pk}", note, row.get_absolute_url(), row.environment))
    return hits
