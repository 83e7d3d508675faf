"""/api/v1/projects/<slug>/environments/<kind>/architecture/: what differs from the design, and Apply to environment."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal.access import get_environment
from portal.api.fields import ExactInput, body_of, signed_in
from runtimes import architecture


class ArchitectureChangeSerializer(serializers.Serializer[Any]):
    act = serializers.ChoiceField(choices=["create", "remove", "change"])
    kind = serializers.ChoiceField(choices=["machine", "runtime", "router", "witness", "failover"])
    name = serializers.CharField()
    sentence = serializers.CharField()


class ArchitectureAnswer(serializers.Serializer[Any]):
    changes = ArchitectureChangeSerializer(many=True)
    digest = serializers.CharField(help_text="Names this difference: give it as `seen` to apply exactly this one.")


class ApplyInput(ExactInput):
    seen = serializers.CharField(help_text="`digest` of the difference that was agreed to; another one is refused (412).")


class ArchitectureView(APIView):
    @extend_schema(responses=ArchitectureAnswer)
    def get(self, request: Request, slug: str, kind: str) -> Response:
        """What Apply to environment would do now, routers first; no changes: the environment is as designed."""
        return self._answer(architecture.diff(get_environment(signed_in(request), slug, kind)))

    @extend_schema(request=ApplyInput, responses=ArchitectureAnswer)
    def post(self, request: Request, slug: str, kind: str) -> Response:
        """Make the environment as designed, whole or not at all; answers with what was done. 403 without the right to deploy there."""
        person = signed_in(request)
        environment = get_environment(person, slug, kind, to_edit=True)
        return self._answer(architecture.apply_agreed(environment, body_of(ApplyInput, request)["seen"], by=person))

    def _answer(self, changes: list[architecture.Change]) -> Response:
        return Response(ArchitectureAnswer({"changes": changes, "digest": architecture.digest_of(changes)}).data)
