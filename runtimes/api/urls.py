"""The part of /api/v1/ that runtimes owns."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from runtimes.api.alarms import AlarmViewSet
from runtimes.api.architecture import ArchitectureView
from runtimes.api.groups import GroupViewSet
from runtimes.api.machines import MachineViewSet, RuntimeViewSet
from runtimes.api.profiles import TimingProfileView

router = SimpleRouter()
router.register("groups", GroupViewSet, basename="api-group")
router.register("machines", MachineViewSet, basename="api-machine")
router.register("runtimes", RuntimeViewSet, basename="api-runtime")
router.register("alarms", AlarmViewSet, basename="api-alarm")
urlpatterns = [
    *router.urls,
    path("environments/<slug:project>/<slug:environment>/timing-profile/", TimingProfileView.as_view(), name="api-timing-profile"),
    path("projects/<slug:slug>/environments/<slug:kind>/architecture/", ArchitectureView.as_view(), name="api-architecture"),
]
