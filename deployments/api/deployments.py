"""/api/v1/deployments/"""

from django.db.models import Prefetch, QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from deployments import rollout
from deployments.models import Deployment, FrozenValues, StepRun
from portal.api.fields import EnvironmentFilter, Gated, Nothing, signed_in


class StepRunSerializer(serializers.ModelSerializer[StepRun]):
    class Meta:
        model = StepRun
        fields = ("number", "kind", "title", "machine", "connector", "group", "status", "reason", "attempt", "started_at", "ended_at")


class DeploymentSerializer(serializers.ModelSerializer[Deployment]):
    project = serializers.CharField(source="environment.project.slug")
    environment = serializers.CharField(source="environment.kind")
    release = serializers.IntegerField(source="release_id")
    release_number = serializers.IntegerField(source="release.number")
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    values_digest = serializers.SerializerMethodField()
    steps = StepRunSerializer(many=True)

    class Meta:
        model = Deployment
        fields = (
            "id", "project", "environment", "release", "release_number", "status",
            "created_at", "created_by", "started_at", "ended_at", "values_digest", "steps",
        )  # fmt: skip

    def get_values_digest(self, deployment: Deployment) -> str | None:
        """SHA-256 over the property values it froze; equal values give an equal digest."""
        kept = list(deployment.frozen.all())
        return kept[0].digest if kept else None


class DeploymentViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[Deployment]):
    """Executions of plans, newest first."""

    serializer_class = DeploymentSerializer
    filterset_class = EnvironmentFilter
    queryset = Deployment.objects.none()
    lookup_value_regex = "[0-9]+"

    def get_queryset(self) -> QuerySet[Deployment]:
        return (
            Deployment.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0)
            .select_related("environment__project", "release", "created_by")
            .prefetch_related("steps", Prefetch("frozen", FrozenValues.objects.defer("values", "preferences")))
        )

    @extend_schema(request=Nothing, responses={202: DeploymentSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """End it; a repeated cancel succeeds."""
        rollout.cancel(self.row_for(request), by=signed_in(request), now=timezone.now())
        return self._answer()

    @extend_schema(request=Nothing, responses={202: DeploymentSerializer})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Go on from the step that failed: the same run, its history kept."""
        rollout.resume(self.row_for(request), by=signed_in(request), now=timezone.now())
        return self._answer()

    def _answer(self) -> Response:
        return Response(DeploymentSerializer(self.get_object()).data, status=status.HTTP_202_ACCEPTED)
