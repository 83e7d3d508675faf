"""The part of /api/v1/ that portal owns."""

from rest_framework.routers import SimpleRouter

from portal.api.properties import PropertyViewSet

router = SimpleRouter()
router.register("properties", PropertyViewSet, basename="api-property")
urlpatterns = router.urls
