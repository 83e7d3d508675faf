"""/api/v1/property-types/"""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal import access, properties
from portal.api.fields import ExactInput
from portal.models import PropertyKind, Role


class TypeSerializer(serializers.Serializer[Any]):
    """The type of a key: declared, or guessed from what uses it."""

    key = serializers.CharField()
    type = serializers.ChoiceField(choices=PropertyKind.choices, source="kind")
    declared = serializers.BooleanField()
    because = serializers.CharField()


class TypeInput(ExactInput):
    project = serializers.SlugField()
    key = serializers.CharField(max_length=200)
    type = serializers.ChoiceField(choices=PropertyKind.choices, allow_blank=True, help_text="Empty: guess it again.")


class PropertyTypes(APIView):
    """What the values of keys have to be, per project."""

    permission_classes = [IsAuthenticated]

    @extend_schema(parameters=[OpenApiParameter("project", required=True)], responses=TypeSerializer(many=True))
    def get(self, request: Request) -> Response:
        """Every key with a type: declared ones, and those guessed from a component's setting."""
        project = access.get_project(request.user, request.query_params.get("project", ""))
        known = properties.expectations(project.pk)
        rows = [{"key": key, "kind": item.kind, "declared": item.declared, "because": item.because} for key, item in sorted(known.items())]
        return Response(TypeSerializer(rows, many=True).data)

    @extend_schema(request=TypeInput, responses=TypeSerializer)
    def put(self, request: Request) -> Response:
        """Declare the type of a key; 400 with one reason per present value that is not of it."""
        body = TypeInput(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data
        project = access.get_project(request.user, given["project"], role=Role.DEVELOPER)
        properties.declare_type(project, given["key"], given["type"], by=request.user)
        item = properties.expectation(given["key"], properties.expectations(project.pk))
        shown = {"key": given["key"], "kind": item.kind, "declared": item.declared, "because": item.because}
        return Response(TypeSerializer(shown).data, status=status.HTTP_200_OK)
