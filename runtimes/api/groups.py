"""/api/v1/groups/: who leads, and the acts of an operator."""

from collections.abc import Callable
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from portal.api.fields import EnvironmentFilter, ExactInput, Gated
from portal.models import Role
from runtimes import failover
from runtimes.models import PREFERENCES, FailoverGroup, GroupRequest, LeadershipChange, choices
from runtimes.protocol import IsolationPolicy, Preference, RequestStatus, State, Status

POLICIES = choices(IsolationPolicy)


class LeaderSerializer(serializers.Serializer[Any]):
    machine = serializers.CharField()
    runtime = serializers.CharField()


class MemberSerializer(serializers.Serializer[Any]):
    """What may be said of a member now: a silent agent, or a report of a lower epoch, is `unknown`."""

    machine = serializers.CharField(source="member.runtime.machine.name")
    runtime = serializers.CharField(source="member.runtime.key")
    status = serializers.ChoiceField(choices=[s.value for s in Status])
    state = serializers.ChoiceField(choices=[s.value for s in State])
    reason = serializers.CharField()
    preference = serializers.ChoiceField(choices=PREFERENCES, source="member.runtime.preference")
    isolation_policy = serializers.ChoiceField(choices=POLICIES, source="member.observed_isolation", help_text="As the member knows it")
    pid = serializers.IntegerField(source="member.runtime.observed_pid", allow_null=True)
    ready = serializers.BooleanField(source="member.observed_ready")
    last_report_at = serializers.DateTimeField(source="member.observed_at", allow_null=True)


class GroupSerializer(serializers.ModelSerializer[FailoverGroup]):
    environment = serializers.CharField(source="environment.kind")
    project = serializers.CharField(source="environment.project.slug")
    leader = serializers.SerializerMethodField()
    members = serializers.SerializerMethodField()
    healthy = serializers.SerializerMethodField()
    problems = serializers.SerializerMethodField()

    class Meta:
        model = FailoverGroup
        fields = (
            "id",
            "name",
            "project",
            "environment",
            "epoch",
            "leader",
            "last_gap_seconds",
            "isolation_policy",
            "healthy",
            "problems",
            "members",
        )
        extra_kwargs = {"last_gap_seconds": {"allow_null": True}}

    def to_representation(self, instance: FailoverGroup) -> dict[str, Any]:
        self._verdict = failover.verdict(instance, now=timezone.now())
        return super().to_representation(instance)

    @extend_schema_field(LeaderSerializer(allow_null=True))
    def get_leader(self, group: FailoverGroup) -> dict[str, str] | None:
        leader = self._verdict.leader
        return {"machine": leader.member.runtime.machine.name, "runtime": leader.member.runtime.key} if leader else None

    @extend_schema_field(MemberSerializer(many=True))
    def get_members(self, group: FailoverGroup) -> Any:
        return MemberSerializer(self._verdict.members, many=True).data

    def get_healthy(self, group: FailoverGroup) -> bool:
        return self._verdict.healthy

    def get_problems(self, group: FailoverGroup) -> list[str]:
        return self._verdict.problems


class ChangeSerializer(serializers.ModelSerializer[LeadershipChange]):
    class Meta:
        model = LeadershipChange
        fields = ("epoch", "runtime", "previous", "cause", "actor", "at", "detection_seconds", "gap_seconds")


class RequestSerializer(serializers.ModelSerializer[GroupRequest]):
    """`status` is pending until an agent carried the wish, running while it stands in etcd, then succeeded, failed or expired."""

    request = serializers.UUIDField(source="id")
    status = serializers.ChoiceField(choices=[s.value for s in RequestStatus])

    class Meta:
        model = GroupRequest
        fields = ("request", "status", "kind", "machine", "code", "reason", "created_at", "ended_at")


class SwitchInput(ExactInput):
    candidate = serializers.CharField(required=False, allow_null=True, help_text="Machine that shall lead; left out: any ready follower")
    expected_leader = serializers.CharField(required=False, allow_null=True, help_text="Machine that leads as you see it; else 412")


class MachineInput(ExactInput):
    machine = serializers.CharField()


class PreferenceInput(MachineInput):
    preference = serializers.ChoiceField(choices=PREFERENCES)


class PolicyInput(serializers.Serializer[Any]):
    policy = serializers.ChoiceField(
        choices=POLICIES, help_text="run-alone: runs on both sides when the link is cut, so two may consume at once"
    )


class GroupViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[FailoverGroup]):
    serializer_class = GroupSerializer
    filterset_class = EnvironmentFilter
    queryset = FailoverGroup.objects.none()

    def get_queryset(self) -> QuerySet[FailoverGroup]:
        return (
            FailoverGroup.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0)
            .select_related("environment__project", "group__connector")
            .prefetch_related("members__runtime__machine", "members__runtime__connector")
        )

    def _about_member(self, request: Request, act: Callable[..., GroupRequest]) -> Response:
        """Disable and enable: the same gate, body and answer."""
        group = self.row_for(request, Role.OPERATOR)
        body = MachineInput(data=request.data)
        body.is_valid(raise_exception=True)
        return self._answer(act(group, body.validated_data["machine"], actor=request.user.get_username(), now=timezone.now()))

    def _answer(self, wish: GroupRequest) -> Response:
        return Response(RequestSerializer(wish).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=SwitchInput, responses={202: RequestSerializer})
    @action(detail=True, methods=["post"])
    def switch(self, request: Request, pk: str) -> Response:
        """Hand leadership over: 404 unknown candidate, 409 busy, 412 another one leads, 503 nobody can take over."""
        group = self.row_for(request, Role.OPERATOR)
        body = SwitchInput(data=request.data)
        body.is_valid(raise_exception=True)
        wish = failover.switch(
            group,
            candidate=body.validated_data.get("candidate"),
            expected_leader=body.validated_data.get("expected_leader"),
            actor=request.user.get_username(),
            now=timezone.now(),
        )
        return self._answer(wish)

    @extend_schema(request=MachineInput, responses={202: RequestSerializer})
    @action(detail=True, methods=["post"])
    def disable(self, request: Request, pk: str) -> Response:
        """The member's inbounds stop and it takes no leadership until enabled again."""
        return self._about_member(request, failover.disable)

    @extend_schema(request=MachineInput, responses={202: RequestSerializer})
    @action(detail=True, methods=["post"])
    def enable(self, request: Request, pk: str) -> Response:
        return self._about_member(request, failover.enable)

    @extend_schema(request=PolicyInput, responses={202: RequestSerializer})
    @action(detail=True, methods=["put"], url_path="isolation-policy")
    def isolation_policy(self, request: Request, pk: str) -> Response:
        """What a member does that has lost the majority of the routers: stop, or run alone."""
        group = self.row_for(request, Role.OPERATOR)
        body = PolicyInput(data=request.data)
        body.is_valid(raise_exception=True)
        policy = IsolationPolicy(body.validated_data["policy"])
        return self._answer(failover.set_isolation_policy(group, policy, actor=request.user.get_username(), now=timezone.now()))

    @extend_schema(request=PreferenceInput, responses=GroupSerializer)
    @action(detail=True, methods=["put"])
    def preference(self, request: Request, pk: str) -> Response:
        """The preference of the machine's runtime: Leader makes a sibling that had it Backup."""
        group = self.row_for(request)
        body = PreferenceInput(data=request.data)
        body.is_valid(raise_exception=True)
        member = failover.member_on(group, body.validated_data["machine"])
        failover.prefer(member.runtime, Preference(body.validated_data["preference"]))
        return Response(GroupSerializer(self.get_object()).data)

    @extend_schema(responses=LeaderSerializer(allow_null=True))
    @action(detail=True)
    def leader(self, request: Request, pk: str) -> Response:
        return Response(GroupSerializer(self.get_object()).data["leader"])

    @extend_schema(responses=ChangeSerializer(many=True))
    @action(detail=True)
    def changes(self, request: Request, pk: str) -> Response:
        """Every change of leadership, newest first."""
        changes: Any = self.get_object().changes.all()
        return self.get_paginated_response(ChangeSerializer(self.paginate_queryset(changes) or [], many=True).data)

    @extend_schema(responses=RequestSerializer)
    @action(detail=True, url_path="requests/(?P<request_id>[0-9a-f-]{36})")
    def one_request(self, request: Request, pk: str, request_id: str) -> Response:
        """How a switch, disable, enable or isolation policy went."""
        return Response(RequestSerializer(self.get_object().requests.get(pk=request_id)).data)
