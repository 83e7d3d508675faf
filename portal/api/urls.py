"""The part of /api/v1/ that portal owns."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from portal.api.properties import PropertyViewSet
from portal.api.property_types import PropertyTypes

router = SimpleRouter()
router.register("properties", PropertyViewSet, basename="api-property")
urlpatterns = [path("property-types/", PropertyTypes.as_view(), name="api-property-types"), *router.urls]
