"""What the frame of every page shows: projects, environments, the person's role, where the person is. Read only when asked."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from portal.access import role_in, role_to_deploy
from portal.models import Environment, EnvironmentKind, Project, Role

SESSION_KEY = "environment"  # the kind a person last looked at: Deploy links of pages without an environment lead there

# URL names (also with "-something" behind) and the page of the sidebar they belong to: what is marked there, and where the switch goes.
PARENT = {
    "solution": "solution",
    "system": "solution",
    "design-architecture": "design-architecture",
    "flows": "flows",
    "transfer": "flows",
    "architecture": "architecture",
    "properties": "properties",
    "plan": "plan",
    "releases": "releases",
    "deployments": "deployments",
    "groups": "groups",
    "items": "items",
    "timeline": "timeline",
    "team": "team",
    "machine": "architecture",
    "runtime": "architecture",
    "timing": "architecture",
    "register-machine": "architecture",
    "group": "groups",
    "property": "properties",
    "deployment": "deployments",
    "release": "releases",
    "approval": "releases",
    "schedule": "releases",
    "activation": "releases",
    "environment-rules": "environment-rules",
    "environment": "environment-rules",
    "freeze": "environment-rules",
    "flow": "flows",
    "step": "plan",
    "members": "team",
}
# Beside those of the sidebar: pages of an environment that everybody in the team may read.
READ_BY_ALL = ("property-grid", "property-key", "property-history", "release-compare", "schedule")


# The chapter that explains a page, by URL name (also with "-something" behind): for dialogs, whose own text is short.
CHAPTERS = {
    "dashboard": "operating",
    "projects": "vocabulary",
    "project": "vocabulary",
    "project-import": "project-file",
    "team": "vocabulary",
    "search": "operating#finding-things",
    "solution": "design#solution",
    "system": "design#solution",
    "design-architecture": "design#architecture",
    "design-architecture-apply": "design#apply-settings",
    "flows": "create",
    "flow": "create#flows",
    "flow-group": "create#groups",
    "flows-group": "create#groups",
    "flow-version": "create#versions",
    "transfer": "create#transfer-from-design",
    "architecture": "design#from-design-to-machines",
    "machine": "operating#on-the-machine",
    "machine-register": "operating#a-machine-joins",
    "runtime": "operating#night-work",
    "runtime-preference": "failover#play-stop-balance",
    "router": "failover#routers-come-go-and-move",
    "cluster": "failover#routers-come-go-and-move",
    "properties": "properties",
    "property": "properties",
    "property-type": "properties#types",
    "property-paste": "properties#paste",
    "property-history": "properties#history",
    "plan": "deploying#plan",
    "step": "deploying#plan",
    "releases": "release",
    "release": "release",
    "release-compare": "release#compare",
    "release-activate": "release#schedule",
    "release-deploy": "deploying#preview",
    "release-rollback": "release#roll-back",
    "release-retention": "release#retention",
    "approval": "release#rules",
    "schedule": "release#schedule",
    "activation": "release#schedule",
    "environment-rules": "release#rules",
    "freeze": "release#rules",
    "deployments": "deploying#deployment",
    "deployment": "deploying#deployment",
    "groups": "failover#statuses",
    "group": "failover#play-stop-balance",
    "group-failback": "failover#failback-and-switches-for-a-time",
    "group-return": "failover#failback-and-switches-for-a-time",
    "group-isolation": "failover#lost-majority-stop-or-run-alone",
    "group-history": "failover#history",
    "timing-profile": "failover#timing-profiles",
    "items": "operating#items-that-cannot-be-delivered",
    "timeline": "failover#history",
}


def longest_prefix(name: str, known: dict[str, str]) -> str | None:
    """What `known` says of a URL name, or of the longest beginning of it up to a dash."""
    found = [key for key in known if name == key or name.startswith(f"{key}-")]
    return known[max(found, key=len)] if found else None


@dataclass(frozen=True)
class Link:
    label: str
    url: str
    icon: str
    active: bool


@dataclass(frozen=True)
class Section:
    label: str
    links: list[Link]


@dataclass(frozen=True)
class EnvironmentLink:
    environment: Environment
    url: str
    active: bool


class Frame:
    """`frame` in every template. At most three queries per page, whatever the number of projects."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._person: AbstractBaseUser | AnonymousUser = getattr(request, "user", AnonymousUser())
        match = request.resolver_match
        self._name: str = (match.url_name or "") if match else ""
        self._arguments: dict[str, Any] = dict(match.kwargs) if match else {}
        self._in_project = bool(match and match.route.startswith("projects/"))

    @cached_property
    def projects(self) -> list[Project]:
        if not self._person.is_authenticated:
            return []
        return list(Project.objects.visible_to(self._person).select_related("team").prefetch_related("environments"))

    @cached_property
    def project(self) -> Project | None:
        slug = self._arguments.get("slug") if self._in_project else None
        return next((project for project in self.projects if project.slug == slug), None)

    @cached_property
    def environments(self) -> list[Environment]:
        return list(self.project.environments.all()) if self.project else []

    @cached_property
    def environment(self) -> Environment | None:
        """The environment whose page this is; None on pages of Design and Create."""
        kind = self._arguments.get("kind")
        return next((environment for environment in self.environments if environment.kind == kind), None)

    @cached_property
    def kind(self) -> str:
        """The environment that links of Deploy and Operate lead to: this page's, or the last one the person looked at."""
        session = getattr(self._request, "session", {})
        if self.environment:
            if session.get(SESSION_KEY) != self.environment.kind:
                session[SESSION_KEY] = self.environment.kind
            return self.environment.kind
        remembered = str(session.get(SESSION_KEY, ""))
        return remembered if remembered in EnvironmentKind.values else str(EnvironmentKind.TEST)

    @cached_property
    def role(self) -> Role | None:
        return role_in(self.project.team_id, self._person) if self.project else None

    def has(self, role: Role) -> bool:
        return self.role is not None and self.role in Role.at_least(role)

    @property
    def may_design(self) -> bool:
        """Design, Create, releases."""
        return self.has(Role.DEVELOPER)

    @property
    def may_operate(self) -> bool:
        """Play, Stop, Disable, Enable."""
        return self.has(Role.OPERATOR)

    @property
    def may_administer(self) -> bool:
        """Members, machine tokens."""
        return self.has(Role.ADMINISTRATOR)

    @property
    def may_deploy(self) -> bool:
        """Change and deploy this page's environment (portal.access.get_environment(to_edit=True))."""
        return self.environment is not None and self.has(role_to_deploy(self.environment))

    @property
    def current(self) -> str:
        """URL name of the sidebar's page: "architecture" also on a machine's."""
        return longest_prefix(self._name, PARENT) or self._name

    @property
    def chapter(self) -> str:
        """The docs' chapter on this page: "release#roll-back"."""
        return longest_prefix(self._name, CHAPTERS) or "index"

    @property
    def _here(self) -> Link | None:
        return next((link for part in self.nav for link in part.links if link.active), None)

    @property
    def here(self) -> str:
        """The page of the sidebar to which this address belongs; else the project's, or the dashboard."""
        return self._here.url if self._here else self.project.get_absolute_url() if self.project else "/"

    @property
    def here_label(self) -> str:
        return f"To {self._here.label}" if self._here else f"To {self.project.name}" if self.project else "To the dashboard"

    @cached_property
    def nav(self) -> list[Section]:
        """The sidebar. A page that this installation does not have is left out."""
        if not self.project:
            return []
        slug, kind = self.project.slug, self.kind
        current = self.current

        def section(label: str, *pages: tuple[str, str, str, list[str]]) -> Section:
            links = [(text, _address(name, arguments), icon, name == current) for text, name, icon, arguments in pages]
            return Section(label, [Link(text, url, icon, active) for text, url, icon, active in links if url])

        sections = [
            section(
                "Design",
                ("Solution", "solution", "affiliate", [slug]),
                ("Architecture", "design-architecture", "sitemap", [slug]),
            ),
            section("Create", ("Flows", "flows", "route", [slug])),
            section(
                "Deploy",
                ("Architecture", "architecture", "server-2", [slug, kind]),
                ("Properties", "properties", "variable", [slug, kind]),
                ("Plan", "plan", "list-check", [slug, kind]),
                ("Releases", "releases", "package", [slug, kind]),
                ("Deployments", "deployments", "rocket", [slug, kind]),
                ("Rules", "environment-rules", "shield-half", [slug, kind]),
            ),
            section(
                "Operate",
                ("Groups", "groups", "arrows-left-right", [slug, kind]),
                ("Items", "items", "stack-2", [slug, kind]),
                ("Timeline", "timeline", "timeline", [slug, kind]),
            ),
            section("Team", ("Members", "team", "users", [self.project.team.slug])),
        ]
        return [part for part in sections if part.links]

    @cached_property
    def environment_links(self) -> list[EnvironmentLink]:
        """The same page in each environment; a page of one machine or deployment, and a form, which one may not be allowed to use there,
        leads to the list of its kind."""
        if not self.project:
            return []
        same = set(self._arguments) == {"slug", "kind"} and self._name in {*PARENT.values(), *READ_BY_ALL}
        links = []
        for environment in self.environments:
            arguments = [self.project.slug, environment.kind]
            url = (_address(self._name, arguments) if same else "") or _address(self.current, arguments)
            url = url or _address("architecture", arguments) or self.project.get_absolute_url()
            active = environment.kind == (self.environment.kind if self.environment else None)
            links.append(EnvironmentLink(environment, url, active))
        return links


def _address(name: str, arguments: list[str]) -> str:
    try:
        return reverse(name, args=arguments) if name else ""
    except NoReverseMatch:
        return ""


def frame(request: HttpRequest) -> dict[str, Any]:
    """Context processor."""
    return {"frame": Frame(request)}
