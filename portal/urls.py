"""Every address of the portal. Pages of an app are listed in its own urls.py; `/api/v1/` of all apps joins here."""

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import URLPattern, URLResolver, include, path, re_path
from drf_spectacular.views import SpectacularAPIView

from portal.api.root import NoSuchEndpoint
from portal.api.token import Token
from portal.views import create, design, health, teams
from portal.views import help as docs

api_patterns: list[URLPattern | URLResolver] = [
    path("schema/", SpectacularAPIView.as_view(), name="api-schema"),
    path("token/", Token.as_view(), name="api-token"),
    path("", include("portal.api.urls")),
    path("", include("runtimes.api.urls")),
    path("", include("deployments.api.urls")),
    re_path("^.*$", NoSuchEndpoint.as_view()),
]

design_patterns: list[URLPattern] = [
    path("solution/", design.solution, name="solution"),
    path("solution/add/", design.add_system, name="solution-add"),
    path("solution/systems/<slug:system>/", design.edit_system, name="system"),
    path("solution/systems/<slug:system>/remove/", design.remove_system, name="system-remove"),
    path("architecture/", design.architecture, name="design-architecture"),
    path("architecture/apply/", design.apply_settings, name="design-architecture-apply"),
    path("architecture/place/", design.place, name="design-architecture-place"),
    path("architecture/drop/", design.drop, name="design-architecture-drop"),
    path("architecture/unplace/", design.unplace, name="design-architecture-unplace"),
    path("architecture/machines/add/", design.add_machine, name="design-architecture-machine-add"),
    path("architecture/machines/<slug:name>/rename/", design.rename_machine, name="design-architecture-machine-rename"),
    path("architecture/machines/<slug:name>/remove/", design.remove_machine, name="design-architecture-machine-remove"),
]

create_patterns: list[URLPattern] = [
    path("flows/", create.flows, name="flows"),
    path("transfer/", create.transfer, name="transfer"),
    path("add-flow/<slug:connector>/", create.add_flow, name="flow-add"),
    path("flows/<slug:connector>/groups/<slug:group>/rename/", create.rename_group, name="flows-group-rename"),
    path("flows/<slug:connector>/<slug:flow>/", create.flow, name="flow"),
    path("flows/<slug:connector>/<slug:flow>/group/", create.group, name="flow-group"),
    path("flows/<slug:connector>/<slug:flow>/version/", create.save_version, name="flow-version-save"),
    path("flows/<slug:connector>/<slug:flow>/versions/<str:number>/", create.version, name="flow-version"),
    path("flows/<slug:connector>/<slug:flow>/remove/", create.remove_flow, name="flow-remove"),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
    path("api/v1/", include(api_patterns)),
    path("docs/", docs.chapter, name="docs-index"),
    path("docs/<path:chapter>/", docs.chapter, name="docs"),
    path("projects/", teams.projects, name="projects"),
    path("teams/<slug:slug>/", teams.team, name="team"),
    path("teams/<slug:slug>/projects/add/", teams.add_project, name="project-add"),
    path("teams/<slug:slug>/members/add/", teams.add_member, name="team-member-add"),
    path("teams/<slug:slug>/members/<str:username>/role/", teams.change_role, name="team-member-role"),
    path("teams/<slug:slug>/members/<str:username>/remove/", teams.remove_member, name="team-member-remove"),
    path("projects/<slug:slug>/", teams.project, name="project"),
    path("agent/v1/", include("runtimes.api.agents")),
    path("projects/<slug:slug>/design/", include(design_patterns)),
    path("projects/<slug:slug>/create/", include(create_patterns)),
    path("", include("runtimes.urls")),
    path("", include("deployments.urls")),
]

handler500 = "portal.views.trouble.server_error"
