"""/api/v1/projects/<slug>/export/ and /import/: a project as one YAML file."""

from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.parsers import BaseParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from deployments import project_file
from portal.access import get_project, role_in, role_to_deploy
from portal.api.fields import ExactInput, body_of, signed_in
from portal.api.parsers import MOST_BYTES, JSONParser, bounded
from portal.errors import Invalid
from portal.models import Project, Role


class YAMLParser(BaseParser):
    """The body as it is: reading it with its line numbers is the import's business."""

    media_type = "application/yaml"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> dict[str, str]:
        try:
            return {"text": bounded(stream, parser_context, MOST_BYTES).read().decode("utf-8-sig")}
        except UnicodeDecodeError:
            raise Invalid("The body is not UTF-8.", field="text") from None


class TextYAMLParser(YAMLParser):
    media_type = "text/yaml"


class ImportInput(ExactInput):
    text = serializers.CharField(
        trim_whitespace=False, allow_blank=True, help_text="The YAML; or send it as the body with Content-Type application/yaml."
    )
    seen = serializers.CharField(required=False, default="", allow_blank=True, help_text="`before` of the plan that was agreed to.")


class FileDifferenceSerializer(serializers.Serializer[Any]):
    verb = serializers.ChoiceField(choices=["create", "change", "delete"])
    what = serializers.CharField()
    details = serializers.ListField(child=serializers.CharField())


class ImportAnswer(serializers.Serializer[Any]):
    applied = serializers.BooleanField()
    differences = FileDifferenceSerializer(many=True)
    notes = serializers.ListField(child=serializers.CharField())
    before = serializers.CharField(help_text="Digest of the project before; give it as `seen` to apply exactly this plan.")


class ProjectExport(APIView):
    permission_classes = [IsAuthenticated]

    @extend_schema(responses={(200, "application/yaml"): OpenApiTypes.STR})
    def get(self, request: Request, slug: str) -> HttpResponse:
        """The project as YAML, without secrets: the same project gives the same bytes."""
        project = get_project(request.user, slug)
        return HttpResponse(project_file.export(project), content_type="application/yaml; charset=utf-8")


class ProjectImport(APIView):
    permission_classes = [IsAuthenticated]
    parser_classes = [JSONParser, YAMLParser, TextYAMLParser]

    @extend_schema(
        request=ImportInput,
        responses=ImportAnswer,
        parameters=[OpenApiParameter("apply", bool, description="true applies; else only the plan")],
    )
    def post(self, request: Request, slug: str) -> Response:
        """What the file would change, or with `?apply=true` change it, whole or not at all. Errors name the line."""
        project = get_project(request.user, slug, role=Role.DEVELOPER)
        given = body_of(ImportInput, request)
        text, seen = given["text"], given["seen"]
        applied = request.query_params.get("apply", "false").lower() == "true"
        user, may = signed_in(request), _editable(request, project)
        if applied:
            done = project_file.apply(project, text, by=user, editable=may, seen=seen)
        else:
            done = project_file.plan(project, text, by=user, editable=may)
        answer = {"applied": applied, "differences": done.differences, "notes": done.notes, "before": done.before}
        return Response(ImportAnswer(answer).data)


def _editable(request: Request, project: Project) -> set[str]:
    role = role_in(project.team_id, signed_in(request))
    return {row.kind for row in project.environments.all() if role and role in Role.at_least(role_to_deploy(row))}
