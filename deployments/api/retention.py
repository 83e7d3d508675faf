"""/api/v1/projects/<slug>/retention/"""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from deployments import retention
from portal import access
from portal.api.fields import ExactInput, body_of, signed_in
from portal.models import Project


class VerdictSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField()
    goes = serializers.BooleanField()
    reason = serializers.CharField()


class RetentionSerializer(serializers.Serializer[Any]):
    """The rule, and what it would do now: nothing is removed by looking."""

    enabled = serializers.BooleanField()
    keep_last = serializers.IntegerField()
    keep_days = serializers.IntegerField()
    releases = VerdictSerializer(many=True)


class RetentionInput(ExactInput):
    enabled = serializers.BooleanField(required=False)
    keep_last = serializers.IntegerField(required=False)
    keep_days = serializers.IntegerField(required=False)


def _answer(project: Project) -> Response:
    rule = retention.rule_of(project)
    found = {
        "enabled": rule.enabled,
        "keep_last": rule.keep_last,
        "keep_days": rule.keep_days,
        "releases": [verdict for _, verdict in retention.verdicts(project, now=timezone.now())],
    }
    return Response(RetentionSerializer(found).data)


class RetentionView(APIView):
    @extend_schema(responses=RetentionSerializer)
    def get(self, request: Request, slug: str) -> Response:
        """Which releases may go, and why the others stay."""
        return _answer(access.get_project(request.user, slug))

    @extend_schema(request=RetentionInput, responses=RetentionSerializer)
    def patch(self, request: Request, slug: str) -> Response:
        """Change the rule (administrators); every hour it is applied where it is enabled."""
        project = access.get_project(request.user, slug, role=retention.MAY_SET_RULE)
        given = body_of(RetentionInput, request)
        retention.set_rule(project, by=signed_in(request), **given)
        return _answer(project)
