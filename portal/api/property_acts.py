"""/api/v1/property-edits/, /property-changes/, /property-undo/ and /one-host/"""

from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from portal import access, properties, router_addresses
from portal.api.fields import EnvironmentFilter, ExactInput, signed_in
from portal.models import Environment, EnvironmentKind, PropertyChange


class Place(ExactInput):
    project = serializers.SlugField()
    environment = serializers.ChoiceField(choices=EnvironmentKind.choices)


class UndoInput(Place):
    act = serializers.UUIDField(
        required=False,
        allow_null=True,
        default=None,
        help_text="The one seen as the last, from property-changes/: refused when there is a later one.",
    )


class EditInput(ExactInput):
    environment = serializers.ChoiceField(choices=EnvironmentKind.choices)
    key = serializers.CharField(max_length=200)
    value = serializers.CharField(allow_blank=True, allow_null=True, trim_whitespace=False, help_text="null deletes the value")
    machine = serializers.CharField(max_length=40, default="", allow_blank=True)
    connector = serializers.CharField(max_length=40, default="", allow_blank=True)
    secret = serializers.BooleanField(required=False, allow_null=True, default=None)


class EditsInput(ExactInput):
    project = serializers.SlugField()
    apply = serializers.BooleanField(default=False, help_text="false only says what would change")
    edits = EditInput(many=True)


class PlannedSerializer(serializers.Serializer[Any]):
    environment = serializers.CharField(source="edit.environment.kind")
    key = serializers.CharField(source="edit.key")
    scope = serializers.CharField(source="edit.scope")
    verb = serializers.ChoiceField(choices=["refused", "none", "add", "change", "delete"])
    secret = serializers.BooleanField()
    reason = serializers.SerializerMethodField()

    def get_reason(self, item: properties.Planned) -> str:
        return item.refusal.sentence if item.refusal else ""


class OneHostInput(Place):
    one_host = serializers.BooleanField()


class PropertyChangeSerializer(serializers.ModelSerializer[PropertyChange]):
    """A change of a value. Of a secret: only that it changed (`before` and `after` empty)."""

    project = serializers.CharField(source="environment.project.slug", read_only=True)
    environment = serializers.CharField(source="environment.kind", read_only=True)
    by = serializers.CharField(source="by.username", default=None, read_only=True)

    class Meta:
        model = PropertyChange
        fields = (
            "id",
            "act",
            "cause",
            "at",
            "by",
            "project",
            "environment",
            "key",
            "scope",
            "before",
            "after",
            "secret_before",
            "secret_after",
        )


class ChangeFilter(EnvironmentFilter):
    key = filters.CharFilter()


class PropertyChangeViewSet(mixins.ListModelMixin, GenericViewSet[PropertyChange]):
    """Who changed which value when, the newest first."""

    serializer_class = PropertyChangeSerializer
    filterset_class = ChangeFilter
    queryset = PropertyChange.objects.none()

    def get_queryset(self) -> QuerySet[PropertyChange]:
        rows = PropertyChange.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0)
        return rows.select_related("environment__project", "by")


class PropertyEdits(APIView):
    """Many values at once: first what would change, then all of it or nothing."""

    permission_classes = [IsAuthenticated]

    @extend_schema(request=EditsInput, responses=PlannedSerializer(many=True))
    def post(self, request: Request) -> Response:
        body = EditsInput(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data
        environments = {
            kind: access.get_environment(request.user, given["project"], kind, to_edit=True)
            for kind in {item["environment"] for item in given["edits"]}
        }
        edits = [
            properties.Edit(
                environments[item["environment"]], item["key"], item["value"], item["machine"], item["connector"], item["secret"]
            )
            for item in given["edits"]
        ]
        done = properties.set_values(edits, by=request.user) if given["apply"] else properties.plan(edits)
        return Response(PlannedSerializer(done, many=True).data)


class PropertyUndo(APIView):
    """Take back the last act that changed values."""

    permission_classes = [IsAuthenticated]

    @extend_schema(request=UndoInput, responses=PlannedSerializer(many=True))
    def post(self, request: Request) -> Response:
        body = UndoInput(data=request.data)
        environment = _environment(request, body)
        seen = properties.last_act(environment)
        for touched in seen.environments if seen else ():
            if not access.may(signed_in(request), environment.project.team_id, access.role_to_deploy(touched)):
                raise PermissionDenied(f"The last change touched {touched.name}, which you may not change.")
        act = body.validated_data["act"] or (seen.act if seen else None)  # what was looked at, not what another person did since
        return Response(PlannedSerializer(properties.undo_last(environment, by=request.user, act=act), many=True).data)


class OneHost(APIView):
    """Do all machines of an environment stand on one host on purpose."""

    permission_classes = [IsAuthenticated]

    @extend_schema(request=OneHostInput, responses=OneHostInput)
    def put(self, request: Request) -> Response:
        body = OneHostInput(data=request.data)
        environment = _environment(request, body)
        router_addresses.mark_one_host(environment, body.validated_data["one_host"], by=request.user)
        return Response(body.validated_data)


def _environment(request: Request, body: Place) -> Environment:
    body.is_valid(raise_exception=True)
    return access.get_environment(request.user, body.validated_data["project"], body.validated_data["environment"], to_edit=True)
