"""Timing profiles: how fast each environment fails over."""

from django.contrib.auth.models import User
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from portal import access
from portal.api.fields import ExactInput
from portal.models import Environment, TimingProfile
from runtimes import profiles


class ProfileInput(ExactInput):
    profile = serializers.ChoiceField(choices=TimingProfile.choices, help_text="lan, fast-lan or wan")


class ProfileSerializer(ProfileInput):
    """The wish; what runs takes it over with the next deployment."""

    ttl_seconds = serializers.FloatField(source="timing.ttl", help_text="A leader that was silent for so long is followed")
    renewal_seconds = serializers.FloatField(source="timing.renewal")
    guard_seconds = serializers.FloatField(source="timing.guard")
    request_timeout_seconds = serializers.FloatField(source="timing.request_timeout")
    etcd_heartbeat_ms = serializers.IntegerField(source="timing.etcd_heartbeat_ms")
    etcd_election_ms = serializers.IntegerField(source="timing.etcd_election_ms")
    expected = serializers.CharField(help_text="How long a group stands still, in words")
    behind = serializers.ListField(child=serializers.CharField(), help_text="Runtimes and routers that run under another profile")


class TimingProfileView(APIView):
    """`environments/<project>/<environment>/timing-profile/`"""

    @extend_schema(responses=ProfileSerializer)
    def get(self, request: Request, project: str, environment: str) -> Response:
        return self._answer(self._environment(request, project, environment, to_edit=False))

    @extend_schema(request=ProfileInput, responses=ProfileSerializer)
    def put(self, request: Request, project: str, environment: str) -> Response:
        """Wish another profile: 403 without the right to deploy this environment."""
        found = self._environment(request, project, environment, to_edit=True)
        body = ProfileInput(data=request.data)
        body.is_valid(raise_exception=True)
        profiles.choose(found, body.validated_data["profile"])
        return self._answer(found)

    def _environment(self, request: Request, project: str, environment: str, *, to_edit: bool) -> Environment:
        assert isinstance(request.user, User)
        return access.get_environment(request.user, project, environment, to_edit=to_edit)

    def _answer(self, environment: Environment) -> Response:
        return Response(ProfileSerializer(profiles.in_use(environment)).data)
