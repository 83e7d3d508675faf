"""The part of /api/v1/ that portal owns."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from portal.api.projects import ProjectViewSet
from portal.api.properties import PropertyViewSet
from portal.api.property_acts import OneHost, PropertyChangeViewSet, PropertyEdits, PropertyUndo
from portal.api.property_types import PropertyTypes

router = SimpleRouter()
router.register("projects", ProjectViewSet, basename="api-project")
router.register("properties", PropertyViewSet, basename="api-property")
router.register("property-changes", PropertyChangeViewSet, basename="api-property-change")
urlpatterns = [
    path("property-edits/", PropertyEdits.as_view(), name="api-property-edits"),
    path("property-undo/", PropertyUndo.as_view(), name="api-property-undo"),
    path("one-host/", OneHost.as_view(), name="api-one-host"),
    path("property-types/", PropertyTypes.as_view(), name="api-property-types"),
    *router.urls,
]
