"""The part of /api/v1/ that deployments owns."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from deployments.api.deployments import DeploymentViewSet
from deployments.api.projects import ProjectExport, ProjectImport
from deployments.api.releases import ReleaseViewSet

router = SimpleRouter()
router.register("releases", ReleaseViewSet, basename="api-release")
router.register("deployments", DeploymentViewSet, basename="api-deployment")
urlpatterns = [
    path("projects/<slug:slug>/export/", ProjectExport.as_view(), name="api-project-export"),
    path("projects/<slug:slug>/import/", ProjectImport.as_view(), name="api-project-import"),
    *router.urls,
]
