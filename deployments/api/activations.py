"""/api/v1/activations/"""

from django.db.models import QuerySet
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from deployments import schedules
from deployments.api.inputs import OverrideField
from deployments.api.moments import ZonedDateTimeField, due_moment
from deployments.models import Activation, ActivationStatus
from portal.api.fields import EnvironmentFilter, ExactInput, Gated, IdFilter, Nothing, body_of, signed_in


class ActivationSerializer(serializers.ModelSerializer[Activation]):
    release = serializers.IntegerField(source="release_id")
    release_number = serializers.IntegerField(source="release.number")
    environment = serializers.CharField(source="environment.kind")
    deployment = serializers.IntegerField(source="deployment_id", allow_null=True)
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    warnings = serializers.ListField(child=serializers.CharField(), default=list)

    class Meta:
        model = Activation
        fields = (
            "id", "release", "release_number", "environment", "status", "due_at", "expires_at", "expires_after_minutes", "deploys",
            "leaving_out", "deployment", "activated_at", "override", "reason", "created_by", "warnings",
        )  # fmt: skip


class RescheduleInput(ExactInput):
    due_at = ZonedDateTimeField()
    override = OverrideField()


class HoldActivationInput(ExactInput):
    reason = serializers.CharField(default="", allow_blank=True, max_length=500)


class ActivationFilter(EnvironmentFilter):
    status = filters.ChoiceFilter(choices=ActivationStatus.choices)
    release = IdFilter()


class ActivationViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[Activation]):
    """Choices of a release for an environment: made, scheduled, held or over; newest first."""

    serializer_class = ActivationSerializer
    filterset_class = ActivationFilter
    queryset = Activation.objects.none()
    lookup_value_regex = "[0-9]+"

    def get_queryset(self) -> QuerySet[Activation]:
        rows = Activation.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0)
        return rows.select_related("environment__project", "release__project", "created_by").order_by("-pk")

    @extend_schema(request=Nothing, responses=ActivationSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Take back a scheduled or held one; a repeated cancel succeeds."""
        activation = self.row_for(request)
        schedules.cancel(activation, by=signed_in(request))
        return Response(ActivationSerializer(activation).data)

    @extend_schema(request=HoldActivationInput, responses=ActivationSerializer)
    @action(detail=True, methods=["post"])
    def hold(self, request: Request, pk: str) -> Response:
        """Pause a scheduled one until a person resumes it."""
        activation = self.row_for(request)
        schedules.hold(activation, reason=body_of(HoldActivationInput, request)["reason"], by=signed_in(request))
        return Response(ActivationSerializer(activation).data)

    @extend_schema(request=Nothing, responses=ActivationSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Let a held one go on at its own time; 409 when that is too late."""
        activation = self.row_for(request)
        schedules.resume(activation, by=signed_in(request), now=timezone.now())
        return Response(ActivationSerializer(activation).data)

    @extend_schema(request=RescheduleInput, responses=ActivationSerializer)
    @action(detail=True, methods=["post"])
    def reschedule(self, request: Request, pk: str) -> Response:
        """Another time; a held one is scheduled again. 409 with the next allowed time inside a freeze or outside the windows."""
        activation = self.row_for(request)
        given = body_of(RescheduleInput, request)
        due_at = due_moment(given["due_at"], activation.environment)
        schedules.reschedule(activation, due_at=due_at, by=signed_in(request), now=timezone.now(), override=given["override"])
        return Response(ActivationSerializer(activation).data)
