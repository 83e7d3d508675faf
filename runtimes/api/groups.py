"""/api/v1/groups/: who leads, and the acts of an operator."""

import re
from datetime import time, timedelta
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from portal.api.fields import EnvironmentFilter, ExactInput, Gated
from portal.api.filtering import refuse_unknown
from portal.errors import Invalid
from portal.models import Role
from portal.time_zones import zone_of
from runtimes import alarms, boards, failback, failover, history
from runtimes.models import (
    PREFERENCES,
    AlarmKind,
    FailbackPolicy,
    FailoverGroup,
    GroupRequest,
    LeadershipChange,
    LeadershipInterruption,
    TimedSwitch,
    choices,
)
from runtimes.protocol import Cause, IsolationPolicy, Preference, RequestStatus, State, Status

POLICIES = choices(IsolationPolicy)
CAUSES = choices(Cause)
A_YEAR = 366 * 86400  # seconds: the bound of what can be reckoned with; failback says how long a switch may really be for


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


class ReturnSerializer(serializers.Serializer[Any]):
    """What is to return to the preferred leader: `at` when time alone decides, and why not yet in the sentence."""

    to = serializers.CharField()
    cause = serializers.ChoiceField(choices=CAUSES, allow_null=True)
    at = serializers.DateTimeField(allow_null=True)
    in_seconds = serializers.SerializerMethodField()
    held = serializers.BooleanField()
    sentence = serializers.CharField()

    def get_in_seconds(self, coming: failback.Return) -> float | None:
        return max(0.0, (coming.at - timezone.now()).total_seconds()) if coming.at else None


class TimedSwitchSerializer(serializers.ModelSerializer[TimedSwitch]):
    """A switch by hand that is for a time only, while it stands."""

    class Meta:
        model = TimedSwitch
        fields = ("machine", "actor", "until")


class AlarmNowSerializer(serializers.Serializer[Any]):
    """What is wrong with a member now (its history: /api/v1/alarms/)."""

    kind = serializers.ChoiceField(choices=AlarmKind.choices)
    machine = serializers.CharField()
    flow = serializers.CharField(source="subject")
    sentence = serializers.CharField()
    remedy = serializers.CharField()


class ClockTime(serializers.TimeField):
    """A time of the day; its zone stands beside it. One with an offset of its own is refused, lest it be taken for another hour."""

    def to_internal_value(self, value: Any) -> time:
        if isinstance(value, str) and re.search("[zZ+-]", value):
            raise serializers.ValidationError('Say the time of the day without an offset ("22:00"): its zone stands in time_zone.')
        read: time = super().to_internal_value(value)
        return read


class FailbackSerializer(ExactInput, serializers.ModelSerializer[FailoverGroup]):
    policy = serializers.ChoiceField(choices=FailbackPolicy.choices, source="failback")
    stable_seconds = serializers.IntegerField(
        source="failback_stable_seconds", min_value=0, max_value=failback.STABLE_LONGEST, required=False
    )
    window_start = ClockTime(source="failback_window_start", allow_null=True, required=False)
    window_end = ClockTime(source="failback_window_end", allow_null=True, required=False)
    time_zone = serializers.CharField(source="failback_zone", max_length=64, required=False, help_text="Of the window: Europe/Amsterdam")
    held_by = serializers.CharField(source="failback_held_by", read_only=True)

    class Meta:
        model = FailoverGroup
        fields = ("policy", "stable_seconds", "window_start", "window_end", "time_zone", "held_by")

    def validate_time_zone(self, name: str) -> str:
        try:
            zone_of(name)
        except Invalid as refusal:
            raise serializers.ValidationError(refusal.sentence) from refusal
        return name


class GroupSerializer(serializers.ModelSerializer[FailoverGroup]):
    environment = serializers.CharField(source="environment.kind")
    project = serializers.CharField(source="environment.project.slug")
    leader = serializers.SerializerMethodField()
    members = serializers.SerializerMethodField()
    health = serializers.SerializerMethodField(help_text="no-standby: it works, and nobody could take over (see without_standby)")
    healthy = serializers.SerializerMethodField()
    without_standby = serializers.SerializerMethodField()
    problems = serializers.SerializerMethodField()
    failback = FailbackSerializer(source="*", read_only=True)
    timed_switch = serializers.SerializerMethodField()
    returns = serializers.SerializerMethodField()
    alarms = serializers.SerializerMethodField()

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
            "last_gap_at",
            "isolation_policy",
            "failback",
            "timed_switch",
            "returns",
            "health",
            "healthy",
            "problems",
            "without_standby",
            "alarms",
            "members",
        )
        extra_kwargs = {
            "last_gap_seconds": {
                "allow_null": True,
                "help_text": "The last one that was measured, at last_gap_at: later changes may have none",
            },
            "last_gap_at": {"allow_null": True},
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._blocked: dict[int, str] = {}  # by environment: asked once for a whole list

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

    @extend_schema_field(TimedSwitchSerializer(allow_null=True))
    def get_timed_switch(self, group: FailoverGroup) -> Any:
        standing = failback.timed(group)
        return TimedSwitchSerializer(standing).data if standing else None

    @extend_schema_field(ReturnSerializer(allow_null=True))
    def get_returns(self, group: FailoverGroup) -> Any:
        if group.environment_id not in self._blocked:
            self._blocked[group.environment_id] = failback.blocked([group.environment_id]).get(group.environment_id, "")
        coming = failback.decide(self._verdict, blocked=self._blocked[group.environment_id], now=timezone.now())
        return ReturnSerializer(coming).data if coming else None

    @extend_schema_field(AlarmNowSerializer(many=True))
    def get_alarms(self, group: FailoverGroup) -> Any:
        return AlarmNowSerializer(alarms.of(self._verdict), many=True).data

    @extend_schema_field(serializers.ChoiceField(choices=[health.value for health in failover.Health]))
    def get_health(self, group: FailoverGroup) -> str:
        return failover.Health.TROUBLED if alarms.of(self._verdict) else self._verdict.health

    def get_healthy(self, group: FailoverGroup) -> bool:
        return self.get_health(group) == failover.Health.HEALTHY

    def get_without_standby(self, group: FailoverGroup) -> list[str]:
        return self._verdict.without_standby

    def get_problems(self, group: FailoverGroup) -> list[str]:
        return self._verdict.problems


class ChangeSerializer(serializers.ModelSerializer[LeadershipChange]):
    """`at` is when the new leader's inbounds were On, by the portal's clock; `heard_at` when the portal was told."""

    deployment = serializers.SerializerMethodField()
    no_gap = serializers.SerializerMethodField(help_text="Why nobody knows the gap; empty where gap_seconds tells it")

    class Meta:
        model = LeadershipChange
        fields = (
            "epoch",
            "runtime",
            "previous",
            "cause",
            "detail",
            "actor",
            "deployment",
            "at",
            "heard_at",
            "detection_seconds",
            "gap_seconds",
            "no_gap",
        )

    def get_no_gap(self, change: LeadershipChange) -> str:
        return history.why_no_gap(change)

    def get_deployment(self, change: LeadershipChange) -> int | None:
        return boards.in_words(change).deployment


class InterruptionSerializer(serializers.ModelSerializer[LeadershipInterruption]):
    """`since` its leader was Off, `until` it led on, by the portal's clock."""

    class Meta:
        model = LeadershipInterruption
        fields = ("epoch", "runtime", "cause", "reason", "since", "until", "seconds")


class ChangeFilter(filters.FilterSet):  # type: ignore[misc]  # django-filter has no types
    """`?cause=crash&cause=hang`, `?runtime=external01.erp`, `?actor=`, `?at_after=`, `?at_before=`, `?gap_min=` seconds."""

    cause = filters.MultipleChoiceFilter(choices=CAUSES)
    runtime = filters.CharFilter()
    actor = filters.CharFilter()
    at_after = filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    at_before = filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")
    gap_min = filters.NumberFilter(field_name="gap_seconds", lookup_expr="gte")


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
    returns_after_seconds = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=A_YEAR,
        help_text="For so long only: then leadership returns to the preferred leader",
    )


class MachineInput(ExactInput):
    machine = serializers.CharField()


class DisableInput(MachineInput):
    expected_leader = serializers.CharField(required=False, allow_null=True, help_text="Machine that leads as you see it; else 412")


class PreferenceInput(MachineInput):
    preference = serializers.ChoiceField(choices=PREFERENCES)


class HoldInput(ExactInput):
    held = serializers.BooleanField(help_text="true: the failback policy returns nothing until it is false again")


class ExtendInput(ExactInput):
    seconds = serializers.IntegerField(min_value=-A_YEAR, max_value=A_YEAR, help_text="The switch stands longer by so many seconds")


class PolicyInput(ExactInput):
    policy = serializers.ChoiceField(
        choices=POLICIES, help_text="run-alone: runs on both sides when the link is cut, so two may consume at once"
    )


class GroupViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[FailoverGroup]):
    serializer_class = GroupSerializer
    filterset_class = EnvironmentFilter
    queryset = FailoverGroup.objects.none()

    def get_queryset(self) -> QuerySet[FailoverGroup]:
        return failback.with_facts(
            FailoverGroup.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0)
            .select_related("environment__project", "group__connector")
            .prefetch_related(failover.with_members()),
            now=timezone.now(),
        )

    def _answer(self, wish: GroupRequest) -> Response:
        return Response(RequestSerializer(wish).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=SwitchInput, responses={202: RequestSerializer})
    @action(detail=True, methods=["post"])
    def switch(self, request: Request, pk: str) -> Response:
        """Hand leadership over: 404 unknown candidate, 409 busy, 412 another one leads, 503 nobody can take over."""
        group = self.row_for(request, Role.OPERATOR)
        body = SwitchInput(data=request.data)
        body.is_valid(raise_exception=True)
        seconds = body.validated_data.get("returns_after_seconds")
        wish = failback.switch(
            group,
            candidate=body.validated_data.get("candidate"),
            expected_leader=body.validated_data.get("expected_leader"),
            actor=request.user.get_username(),
            now=timezone.now(),
            returns_after=timedelta(seconds=seconds) if seconds is not None else None,
        )
        return self._answer(wish)

    @extend_schema(request=ExtendInput, responses={200: TimedSwitchSerializer, 204: None})
    @action(detail=True, methods=["patch", "delete"], url_path="timed-switch")
    def timed_switch(self, request: Request, pk: str) -> Response:
        """A switch that is for a time only: PATCH lets it stand longer, DELETE lets it stand for good. 409 when there is none."""
        group = self.row_for(request, Role.OPERATOR)
        if request.method == "DELETE":
            failback.cancel(group, actor=request.user.get_username(), now=timezone.now())
            return Response(status=status.HTTP_204_NO_CONTENT)
        body = ExtendInput(data=request.data)
        body.is_valid(raise_exception=True)
        row = failback.extend(group, timedelta(seconds=body.validated_data["seconds"]), now=timezone.now())
        return Response(TimedSwitchSerializer(row).data)

    @extend_schema(request=FailbackSerializer, responses=GroupSerializer)
    @action(detail=True, methods=["put"])
    def failback(self, request: Request, pk: str) -> Response:
        """How leadership returns to the preferred leader: manual, automatic after a stability time, or that in a daily window."""
        group = self.row_for(request, Role.OPERATOR)
        body = FailbackSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        said = body.validated_data
        start, end = said.get("failback_window_start"), said.get("failback_window_end")
        failback.set_policy(
            group,
            FailbackPolicy(said["failback"]),
            stable_seconds=said.get("failback_stable_seconds", group.failback_stable_seconds),
            window=(start, end) if start is not None and end is not None else None,
            zone=said.get("failback_zone", group.failback_zone),
        )
        return Response(GroupSerializer(self.get_object()).data)

    @extend_schema(request=HoldInput, responses=GroupSerializer)
    @action(detail=True, methods=["put"], url_path="failback/hold")
    def hold(self, request: Request, pk: str) -> Response:
        """Keep the failback policy from returning this group, or let it."""
        group = self.row_for(request, Role.OPERATOR)
        body = HoldInput(data=request.data)
        body.is_valid(raise_exception=True)
        failback.hold(group, held=body.validated_data["held"], actor=request.user.get_username())
        return Response(GroupSerializer(self.get_object()).data)

    @extend_schema(request=DisableInput, responses={202: RequestSerializer})
    @action(detail=True, methods=["post"])
    def disable(self, request: Request, pk: str) -> Response:
        """The member's inbounds stop and it takes no leadership until enabled again."""
        group = self.row_for(request, Role.OPERATOR)
        body = DisableInput(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data
        actor, expected = request.user.get_username(), given.get("expected_leader")
        return self._answer(failover.disable(group, given["machine"], actor=actor, now=timezone.now(), expected_leader=expected))

    @extend_schema(request=MachineInput, responses={202: RequestSerializer})
    @action(detail=True, methods=["post"])
    def enable(self, request: Request, pk: str) -> Response:
        group = self.row_for(request, Role.OPERATOR)
        body = MachineInput(data=request.data)
        body.is_valid(raise_exception=True)
        actor = request.user.get_username()
        return self._answer(failover.enable(group, body.validated_data["machine"], actor=actor, now=timezone.now()))

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

    @extend_schema(responses=ChangeSerializer(many=True), filters=True)
    @action(detail=True, filterset_class=ChangeFilter)
    def changes(self, request: Request, pk: str) -> Response:
        """Every change of leadership, newest first, with its cause, who asked, detection time and gap."""
        refuse_unknown(request, ChangeFilter.base_filters)
        asked = ChangeFilter(request.query_params, queryset=self.row_for_reading().changes.all())
        if not asked.is_valid():
            raise serializers.ValidationError(asked.errors)
        changes: Any = asked.qs
        return self.get_paginated_response(ChangeSerializer(self.paginate_queryset(changes) or [], many=True).data)

    @extend_schema(responses=InterruptionSerializer(many=True), filters=False)
    @action(detail=True, filterset_class=None)
    def interruptions(self, request: Request, pk: str) -> Response:
        """Where a leader was Off and led on under the same epoch, newest first: no change of leadership, but nobody led."""
        found: Any = self.row_for_reading().interruptions.all()
        return self.get_paginated_response(InterruptionSerializer(self.paginate_queryset(found) or [], many=True).data)

    def row_for_reading(self) -> FailoverGroup:
        """The group of this address; the filters of the list below it are not its own."""
        group: FailoverGroup = get_object_or_404(self.get_queryset(), pk=self.kwargs["pk"])
        return group

    @extend_schema(responses=RequestSerializer)
    @action(detail=True, url_path="requests/(?P<request_id>[0-9a-f-]{36})")
    def one_request(self, request: Request, pk: str, request_id: str) -> Response:
        """How a switch, disable, enable or isolation policy went."""
        return Response(RequestSerializer(get_object_or_404(self.get_object().requests, pk=request_id)).data)
