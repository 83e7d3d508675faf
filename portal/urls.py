"""Every address of the portal. Pages of an app are listed in its own urls.py; `/api/v1/` of all apps joins here."""

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import URLPattern, URLResolver, include, path, re_path
from drf_spectacular.views import SpectacularAPIView
from rest_framework.authtoken.views import obtain_auth_token

from portal.api.root import NoSuchEndpoint
from portal.views import health, teams

api_patterns: list[URLPattern | URLResolver] = [
    path("schema/", SpectacularAPIView.as_view(), name="api-schema"),
    path("token/", obtain_auth_token, name="api-token"),
    path("", include("portal.api.urls")),
    path("", include("runtimes.api.urls")),
    path("", include("deployments.api.urls")),
    re_path("^.*$", NoSuchEndpoint.as_view()),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
    path("api/v1/", include(api_patterns)),
    path("projects/<slug:slug>/", teams.project, name="project"),
    path("agent/v1/", include("runtimes.api.agents")),
    path("", include("runtimes.urls")),
    path("", include("deployments.urls")),
]
