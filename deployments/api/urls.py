"""The part of /api/v1/ that deployments owns."""

from rest_framework.routers import SimpleRouter

from deployments.api.deployments import DeploymentViewSet
from deployments.api.releases import ReleaseViewSet

router = SimpleRouter()
router.register("releases", ReleaseViewSet, basename="api-release")
router.register("deployments", DeploymentViewSet, basename="api-deployment")
urlpatterns = router.urls
