"""/api/v1/releases/"""

from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.viewsets import GenericViewSet

from deployments import preview, releases, rollout, schedules, sides
from deployments.api.activations import ActivationSerializer
from deployments.api.deployments import DeploymentSerializer
from deployments.api.inputs import LeavingOutField, OverrideField
from deployments.api.moments import ZonedDateTimeField, due_moment
from deployments.models import Release
from deployments.preview import Preview
from portal import access
from portal.api.fields import EnvironmentChoice, ExactInput, IdFilter, body_of, signed_in
from portal.errors import Invalid
from portal.models import EnvironmentKind, Role


class ReleaseSerializer(serializers.ModelSerializer[Release]):
    project = serializers.CharField(source="project.slug")
    active_on = serializers.SerializerMethodField()
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    omissions = serializers.ListField(
        child=serializers.CharField(),
        read_only=True,
        help_text="What it does not hold: flows that had no saved version, edits that were not saved.",
    )

    class Meta:
        model = Release
        fields: tuple[str, ...] = (
            "id", "project", "number", "name", "note", "digest", "omissions", "active_on", "created_at", "created_by",
        )  # fmt: skip

    def get_active_on(self, release: Release) -> list[str]:
        """Environments that chose this release."""
        return [activation.environment.kind for activation in release.activations.all() if activation.status == "active"]


class ReleaseDetailSerializer(ReleaseSerializer):
    content = serializers.JSONField()

    class Meta(ReleaseSerializer.Meta):
        fields: tuple[str, ...] = (*ReleaseSerializer.Meta.fields, "content")


class ReleaseInput(ExactInput):
    project = serializers.SlugField()
    name = serializers.CharField(max_length=80)
    note = serializers.CharField(default="", allow_blank=True)


class PreviewInput(EnvironmentChoice):
    leaving_out = LeavingOutField()


class DeployInput(EnvironmentChoice):
    override = OverrideField()


class StartInput(DeployInput):
    leaving_out = LeavingOutField()


class ActivateInput(DeployInput):
    due_at = ZonedDateTimeField(required=False, allow_null=True, default=None)
    deploys = serializers.BooleanField(default=False, help_text="With `due_at`: deploy as soon as it is activated.")
    leaving_out = LeavingOutField(
        help_text="With `deploys`: names of machines to deploy without, those of them that are offline when it is due; one that reports "
        "then is deployed with the others."
    )
    expires_after_minutes = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, help_text="With `due_at`: left out, as the environment's rules say; null, never."
    )


class LineSerializer(serializers.Serializer[Any]):
    sign = serializers.ChoiceField(choices=[" ", "+", "-"], help_text="in both, only in the second, only in the first")
    text = serializers.CharField()


class ItemSerializer(serializers.Serializer[Any]):
    how = serializers.ChoiceField(choices=["new", "gone", "changed"])
    name = serializers.CharField()
    sentence = serializers.CharField()
    lines = LineSerializer(many=True)


class SectionSerializer(serializers.Serializer[Any]):
    key = serializers.CharField()
    title = serializers.CharField()
    changes = ItemSerializer(many=True)
    same = serializers.IntegerField(help_text="How many are equal.")


class DifferenceSerializer(serializers.Serializer[Any]):
    """What the second side changes against the first. Of secrets it says that they changed, never how."""

    before = serializers.CharField()
    after = serializers.CharField()
    equal = serializers.BooleanField()
    sentences = serializers.ListField(child=serializers.CharField())
    notes = serializers.ListField(child=serializers.CharField())
    sections = SectionSerializer(many=True)


class HandOverSerializer(serializers.Serializer[Any]):
    group = serializers.CharField()
    before = serializers.CharField()
    after = serializers.CharField()
    cause = serializers.CharField()


class ForeseenSerializer(serializers.Serializer[Any]):
    """One step of the run to come."""

    number = serializers.IntegerField()
    kind = serializers.CharField()
    title = serializers.CharField()
    stage = serializers.CharField()
    lane = serializers.CharField()
    outcome = serializers.ChoiceField(choices=["runs", "skipped", "waits", "fails"])
    sentence = serializers.CharField()
    restarts = serializers.ListField(child=serializers.CharField(), help_text="Runtimes.")
    hand_overs = HandOverSerializer(many=True)
    without_standby = serializers.ListField(child=serializers.CharField(), help_text="Groups, while the step runs.")
    interrupted = serializers.ListField(child=serializers.CharField(), help_text="Groups that nobody leads for a while.")
    leaders = serializers.DictField(child=serializers.CharField(allow_null=True), help_text="Group to runtime, after the step.")
    seconds = serializers.FloatField(allow_null=True, help_text="From history; null: there is none.")


class PreviewSerializer(serializers.Serializer[Any]):
    """The same shape as the run. After a step that would fail nothing is foreseen."""

    steps = ForeseenSerializer(many=True)
    obstacles = serializers.ListField(child=serializers.CharField())
    missing = serializers.SerializerMethodField()
    gaps = serializers.ListField(child=serializers.CharField())
    rules = serializers.ListField(child=serializers.CharField(), help_text="What the environment's rules forbid now.")
    leaders = serializers.DictField(child=serializers.CharField(allow_null=True), help_text="Group to runtime, before the first step.")
    hand_overs = serializers.DictField(child=serializers.IntegerField(), help_text="How often each group changes its leader.")
    seconds = serializers.FloatField(allow_null=True, help_text="Of the steps whose time is known; null: of none that runs.")
    untimed = serializers.IntegerField(help_text="Steps that run and of which no time is known: `seconds` does not count them.")

    def get_missing(self, found: Preview) -> list[str]:
        return [item.sentence for item in found.missing]


class ReleaseFilter(filters.FilterSet):  # type: ignore[misc]  # django-filter has no types
    project = filters.CharFilter(field_name="project__slug")
    number = IdFilter()


class ReleaseViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Release]):
    """Immutable numbered snapshots of a project's Create phase."""

    serializer_class = ReleaseSerializer
    filterset_class = ReleaseFilter
    queryset = Release.objects.none()
    lookup_value_regex = "[0-9]+"

    def get_queryset(self) -> QuerySet[Release]:
        rows = Release.objects.filter(project__team__memberships__user_id=self.request.user.pk or 0)
        if self.action == "list":
            rows = rows.defer("content")
        return rows.select_related("project", "created_by").prefetch_related("activations__environment")

    def get_serializer_class(self) -> type[ReleaseSerializer]:
        return ReleaseDetailSerializer if self.action == "retrieve" else ReleaseSerializer

    @extend_schema(request=ReleaseInput, responses={201: ReleaseSerializer})
    def create(self, request: Request) -> Response:
        """A new release from the latest saved version of every flow."""
        given = body_of(ReleaseInput, request)
        project = access.get_project(request.user, given.pop("project"), role=Role.DEVELOPER)
        release = releases.build(project, **given, by=signed_in(request))
        return Response(ReleaseSerializer(release).data, status=status.HTTP_201_CREATED)

    @extend_schema(
        parameters=[
            OpenApiParameter("with", int, description="Id of the release to compare with: the first side."),
            OpenApiParameter("environment", str, description="test, acceptance or production; without `with`: what runs there."),
        ],
        responses=DifferenceSerializer,
    )
    @action(detail=True, methods=["get"])
    def compare(self, request: Request, pk: str) -> Response:
        """What this release changes against another (`?with=`), in an environment or not, or against what runs (`?environment=` alone)."""
        release = self.get_object()
        kind, other_pk = request.query_params.get("environment", ""), request.query_params.get("with", "")
        if kind and kind not in EnvironmentKind.values:
            raise Invalid(f"There is no environment {kind}: say {', '.join(EnvironmentKind.values)}.", field="environment")
        if not kind and not other_pk:
            raise Invalid("Say with which release (?with=) or with which environment (?environment=) to compare.", field="with")
        other = None
        if other_pk:
            other = self.get_queryset().filter(project=release.project, pk=other_pk).first() if other_pk.isdecimal() else None
            if other is None:
                raise Invalid(f"There is no release with id {other_pk} in this project.", field="with")
        if kind:
            environment = access.get_environment(request.user, release.project.slug, kind)
            return Response(DifferenceSerializer(sides.difference(other, release, environment)).data)
        assert other is not None
        return Response(DifferenceSerializer(sides.releases(other, release)).data)

    @extend_schema(request=ActivateInput, responses=ActivationSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, pk: str) -> Response:
        """Choose the release for an environment, now or at `due_at`; 409 with one reason per missing property or rule."""
        release = self.get_object()
        given = body_of(ActivateInput, request)
        environment = access.get_environment(request.user, release.project.slug, given["environment"], to_edit=True)
        due_at, now = given["due_at"], timezone.now()
        if due_at:
            activation = schedules.schedule(
                release,
                environment,
                due_at=due_moment(due_at, environment),
                by=signed_in(request),
                now=now,
                deploys=given["deploys"],
                leaving_out=given["leaving_out"],
                expires_after_minutes=given.get("expires_after_minutes", schedules.DEFAULT),
                override=given["override"],
            )
        elif given["leaving_out"]:
            raise Invalid("Say a time (due_at): what is deployed by hand leaves machines out when it is started.", field="leaving_out")
        elif given["deploys"]:
            raise Invalid("Say a time (due_at): to deploy now, activate it and then start its deployment.", field="deploys")
        elif "expires_after_minutes" in given:
            raise Invalid("Say a time (due_at): what is activated now is never late.", field="expires_after_minutes")
        else:
            activation = releases.activate(release, environment, by=signed_in(request), now=now, override=given["override"])
        activation.warnings = list(releases.warnings(release, environment))  # type: ignore[attr-defined]
        return Response(ActivationSerializer(activation).data)

    @extend_schema(
        responses=PreviewSerializer,
        filters=False,
        parameters=[
            OpenApiParameter("environment", enum=EnvironmentKind.values, required=True),
            OpenApiParameter("leaving_out", str, many=True, description="Offline machines to go on without."),
        ],
    )
    @action(detail=True, pagination_class=None)
    def preview(self, request: Request, pk: str) -> Response:
        """What deploying this release by the environment's plan would do now, step by step: restarts, hand-overs, leaders, time."""
        release = self.get_object()
        asked = PreviewInput(data=request.query_params)
        asked.is_valid(raise_exception=True)
        environment = access.get_environment(request.user, release.project.slug, asked.validated_data["environment"])
        found = preview.preview(release, environment, now=timezone.now(), leaving_out=asked.validated_data["leaving_out"])
        return Response(PreviewSerializer(found).data)

    @extend_schema(request=StartInput, responses={202: DeploymentSerializer})
    @action(detail=True, methods=["post"], url_path="deployments")
    def deploy(self, request: Request, pk: str) -> Response:
        """Run the environment's plan from this release; 202 with Location."""
        release = self.get_object()
        given = body_of(StartInput, request)
        kind, by = EnvironmentKind(given["environment"]), signed_in(request)
        environment = access.get_environment(request.user, release.project.slug, kind, to_edit=True)
        override, out = given["override"], given["leaving_out"]
        deployment = rollout.prepare(release, on=environment, by=by, now=timezone.now(), override=override, leaving_out=out)
        location = reverse("api-deployment-detail", args=[deployment.pk], request=request)
        return Response(DeploymentSerializer(deployment).data, status=status.HTTP_202_ACCEPTED, headers={"Location": location})
