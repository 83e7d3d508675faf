"""/api/v1/alarms/: what leads and does not work, now and before."""

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from rest_framework import mixins, serializers
from rest_framework.viewsets import GenericViewSet

from portal.models import EnvironmentKind
from runtimes import alarms
from runtimes.models import Alarm, AlarmKind


class AlarmSerializer(serializers.ModelSerializer[Alarm]):
    """`cleared_at` is null while it is open; it clears by itself."""

    project = serializers.CharField(source="group.environment.project.slug")
    environment = serializers.CharField(source="group.environment.kind")
    group_name = serializers.CharField(source="group.name")
    flow = serializers.CharField(source="subject", help_text="The silent inbound; else empty")

    class Meta:
        model = Alarm
        fields = (
            "id",
            "project",
            "environment",
            "group",
            "group_name",
            "runtime",
            "flow",
            "kind",
            "sentence",
            "remedy",
            "since",
            "raised_at",
            "cleared_at",
            "cleared_because",
        )


class AlarmFilter(filters.FilterSet):  # type: ignore[misc]  # django-filter has no types
    """`?open=true`, `?project=webshop&environment=test`, `?group=`, `?kind=partly`, `?machine=external01`."""

    open = filters.BooleanFilter(field_name="cleared_at", lookup_expr="isnull")
    project = filters.CharFilter(field_name="group__environment__project__slug")
    environment = filters.ChoiceFilter(field_name="group__environment__kind", choices=EnvironmentKind.choices)
    group = filters.UUIDFilter(field_name="group_id")
    kind = filters.MultipleChoiceFilter(choices=AlarmKind.choices)
    machine = filters.CharFilter(method="on_machine")

    def on_machine(self, rows: "QuerySet[Alarm]", name: str, value: str) -> "QuerySet[Alarm]":
        return rows.filter(runtime__startswith=f"{value}.")


class AlarmViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Alarm]):
    """Alarms of the person's projects, newest first."""

    serializer_class = AlarmSerializer
    filterset_class = AlarmFilter
    queryset = Alarm.objects.none()
    lookup_value_regex = "[0-9]+"

    def get_queryset(self) -> "QuerySet[Alarm]":
        mine = alarms.shown().filter(group__environment__project__team__memberships__user_id=self.request.user.pk or 0)
        return mine.select_related("group__environment__project")
