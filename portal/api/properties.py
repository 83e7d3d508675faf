"""/api/v1/properties/"""

from django.db import transaction
from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from portal import access, properties
from portal.api.fields import EnvironmentFilter, ExactInput, Gated, if_match
from portal.errors import Stale
from portal.models import EnvironmentKind, Property


class PropertySerializer(serializers.ModelSerializer[Property]):
    """A value of a placeholder. A secret's value is never given: null, with `is_set`."""

    project = serializers.CharField(source="environment.project.slug", read_only=True)
    environment = serializers.CharField(source="environment.kind", read_only=True)
    value = serializers.SerializerMethodField("shown")
    is_set = serializers.SerializerMethodField()

    class Meta:
        model = Property
        fields = ("id", "project", "environment", "key", "machine", "connector", "scope", "value", "is_set", "secret", "updated_at")

    def shown(self, row: Property) -> str | None:
        return None if row.secret else row.value

    def get_is_set(self, row: Property) -> bool:
        return True


class PropertyInput(ExactInput):
    project = serializers.SlugField()
    environment = serializers.ChoiceField(choices=EnvironmentKind.choices)
    key = serializers.CharField(max_length=200)
    value = serializers.CharField(allow_blank=True, trim_whitespace=False)
    machine = serializers.CharField(max_length=40, default="", allow_blank=True)
    connector = serializers.CharField(max_length=40, default="", allow_blank=True)
    secret = serializers.BooleanField(required=False, allow_null=True, default=None)


class NewValue(ExactInput):
    value = serializers.CharField(allow_blank=True, trim_whitespace=False)


IF_MATCH = OpenApiParameter(
    "If-Match", str, OpenApiParameter.HEADER, description="The ETag of the value as it was seen: 412 when it changed."
)


class PropertyFilter(EnvironmentFilter):
    key = filters.CharFilter()
    search = filters.CharFilter(field_name="key", lookup_expr="icontains")
    machine = filters.CharFilter()
    connector = filters.CharFilter()
    secret = filters.BooleanFilter()


class PropertyViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[Property]):
    """Values of placeholders per environment and scope. Writing an existing key and scope replaces its value."""

    serializer_class = PropertySerializer
    filterset_class = PropertyFilter
    queryset = Property.objects.none()

    def get_queryset(self) -> QuerySet[Property]:
        return Property.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0).select_related(
            "environment__project"
        )

    def create(self, request: Request) -> Response:
        body = PropertyInput(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data
        environment = access.get_environment(request.user, given.pop("project"), given.pop("environment"), to_edit=True)
        row = properties.set_value(environment, given.pop("key"), given.pop("value"), **given, by=request.user)
        return Response(PropertySerializer(row).data, status=status.HTTP_201_CREATED)

    def retrieve(self, request: Request, pk: str) -> Response:
        return _with_tag(self.get_object())

    @extend_schema(request=NewValue, responses=PropertySerializer, parameters=[IF_MATCH])
    def partial_update(self, request: Request, pk: str) -> Response:
        row = self.row_for(request)
        body = NewValue(data=request.data)
        body.is_valid(raise_exception=True)
        value = body.validated_data["value"]
        with transaction.atomic():
            _refuse_stale(request, row)
            changed = properties.set_value(row.environment, row.key, value, machine=row.machine, connector=row.connector, by=request.user)
        return _with_tag(changed)

    @extend_schema(responses={204: None}, parameters=[IF_MATCH])
    def destroy(self, request: Request, pk: str) -> Response:
        row = self.row_for(request)
        with transaction.atomic():
            _refuse_stale(request, row)
            properties.remove_value(row.environment, row.key, machine=row.machine, connector=row.connector, by=request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


def _with_tag(row: Property) -> Response:
    return Response(PropertySerializer(row).data, headers={"ETag": f'"{properties.tag(row)}"'})


def _refuse_stale(request: Request, row: Property) -> None:
    """Two people on one value: who says what he saw changes nothing else. Raises Stale."""
    seen = if_match(request)
    if not seen:
        return
    now = Property.objects.select_for_update().filter(pk=row.pk).first()
    if now is None or properties.tag(now) != seen:
        by = f" by {now.updated_by}" if now is not None and now.updated_by else ""
        raise Stale(f"{row.key} ({row.scope}) was changed{by} since it was read: look at it again.")
