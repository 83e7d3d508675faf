"""/api/v1/machines/ and /api/v1/runtimes/"""

from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from portal.api.fields import EnvironmentFilter, ExactInput, Gated, Nothing, signed_in
from portal.errors import NotAllowed
from portal.models import Role
from runtimes import fleet, joining, membership, reach
from runtimes.api.items import FailedItems
from runtimes.models import Machine, MembershipChange, Router, Runtime
from runtimes.protocol import ReachOutcome


class RouterSerializer(serializers.ModelSerializer[Router]):
    state = serializers.CharField(source="observed_state")
    reason = serializers.CharField(source="observed_reason")
    warning = serializers.CharField(source="observed_warning")
    address = serializers.SerializerMethodField()

    class Meta:
        model = Router
        fields = ("state", "reason", "warning", "address")

    def get_address(self, router: Router) -> str | None:
        return f"{router.desired_host}:{router.desired_port}" if router.desired_port else None


class MachineSerializer(serializers.ModelSerializer[Machine]):
    project = serializers.CharField(source="environment.project.slug")
    environment = serializers.CharField(source="environment.kind")
    silent = serializers.SerializerMethodField()
    router = serializers.SerializerMethodField()
    listed_commands = serializers.ListField(
        child=serializers.CharField(), allow_null=True, help_text="What Run command may name there; null: its agent is too old to tell."
    )

    class Meta:
        model = Machine
        fields = (
            "id",
            "name",
            "kind",
            "project",
            "environment",
            "joined_at",
            "last_report_at",
            "silent",
            "agent_version",
            "listed_commands",
            "router",
        )

    def get_silent(self, machine: Machine) -> bool:
        return machine.is_silent(now=timezone.now())

    @extend_schema(responses=RouterSerializer(allow_null=True))
    def get_router(self, machine: Machine) -> Any:
        router = getattr(machine, "router", None)
        return RouterSerializer(router).data if router else None


class TokenSerializer(serializers.Serializer[Any]):
    token = serializers.CharField()


class RuntimeSerializer(serializers.ModelSerializer[Runtime]):
    """`desired_*` is the wish, the rest is what the agent last reported, at `last_report_at`."""

    project = serializers.CharField(source="environment.project.slug")
    environment = serializers.CharField(source="environment.kind")
    runtime = serializers.CharField(source="key")
    machine = serializers.CharField(source="machine.name")
    connector = serializers.CharField(source="connector.name")
    state = serializers.CharField(source="observed_state")
    reason = serializers.CharField(source="observed_reason")
    pid = serializers.IntegerField(source="observed_pid", allow_null=True)
    release = serializers.IntegerField(source="observed_release", allow_null=True)
    desired_release = serializers.IntegerField(allow_null=True)
    bundle_release = serializers.IntegerField(
        allow_null=True, help_text="An earlier release whose very bundle it runs, for `release` gave it the same; null: there is none."
    )
    flows = serializers.JSONField(source="observed_flows")
    last_report_at = serializers.DateTimeField(source="observed_at", allow_null=True)

    class Meta:
        model = Runtime
        fields = (
            "id", "runtime", "project", "environment", "machine", "connector", "failover", "preference", "state", "reason",
            "pid", "release", "desired_running", "held", "desired_release", "bundle_release", "flows", "last_report_at",
        )  # fmt: skip


class RouterChangeSerializer(serializers.ModelSerializer[MembershipChange]):
    """A change of the environment's routers: what goes on, or what it waits for; `refused`: a person has to put that right."""

    project = serializers.CharField(source="environment.project.slug")
    environment = serializers.CharField(source="environment.kind")

    class Meta:
        model = MembershipChange
        fields = ("id", "project", "environment", "status", "sentence", "refused", "wished", "actor", "log", "created_at", "ended_at")


class SaidSerializer(serializers.Serializer[Any]):
    """One machine's part in a test; `outcome` null: it has not answered."""

    machine = serializers.CharField()
    outcome = serializers.ChoiceField(choices=[(item.value, item.value) for item in ReachOutcome], allow_null=True)
    reason = serializers.CharField()
    seconds = serializers.FloatField(allow_null=True, help_text="to connect")
    at = serializers.DateTimeField(allow_null=True)


class ReachSerializer(serializers.Serializer[Any]):
    """The last test of a machine's Internal IP and Failover port by the other machines. `current` false: the value is another one now."""

    machine = serializers.CharField(source="test.machine.name")
    address = serializers.CharField()
    asked_by = serializers.CharField(source="test.actor")
    asked_at = serializers.DateTimeField(source="test.created_at")
    under_way = serializers.BooleanField()
    current = serializers.BooleanField()
    reachable = serializers.SerializerMethodField()
    owner = SaidSerializer()
    others = SaidSerializer(many=True)
    sentences = serializers.ListField(child=serializers.CharField())

    def get_reachable(self, tested: reach.Tested) -> bool | None:
        """By every other machine; null while it is under way, or of a former value."""
        return {"green": True, "red": False}.get(tested.tone)


class ConfirmInput(ExactInput):
    confirm = serializers.CharField(help_text="The environment's name, for example Test")


class MachineFilter(EnvironmentFilter):
    name = filters.CharFilter()


class RuntimeFilter(EnvironmentFilter):
    machine = filters.CharFilter(field_name="machine__name")
    connector = filters.CharFilter(field_name="connector__name")


class MachineViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[Machine]):
    serializer_class = MachineSerializer
    filterset_class = MachineFilter
    queryset = Machine.objects.none()

    def get_queryset(self) -> QuerySet[Machine]:
        return Machine.objects.visible_to(self.request.user).select_related("environment__project", "router")

    @extend_schema(request=Nothing, responses={201: TokenSerializer})
    @action(detail=True, methods=["post"])
    def token(self, request: Request, pk: str) -> Response:
        """A one-time token with which an agent joins as this machine; shown once, ends earlier unused ones."""
        machine = self.row_for(request, Role.ADMINISTRATOR)
        return Response({"token": joining.register(machine, by=signed_in(request))}, status=status.HTTP_201_CREATED)

    @extend_schema(request=Nothing, responses={202: RouterChangeSerializer})
    @action(detail=True, methods=["post"], url_path="rebuild-router")
    def rebuild_router(self, request: Request, pk: str) -> Response:
        """The router's data are gone: its member is removed and the machine added again. 409 when they are not, or without a majority."""
        machine = self.row_for(request, Role.OPERATOR)
        change = membership.rebuild_router(machine, actor=request.user.get_username(), now=timezone.now())
        return Response(RouterChangeSerializer(change).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=ConfirmInput, responses={202: MachineSerializer})
    @action(detail=True, methods=["post"], url_path="rebuild-cluster")
    def rebuild_cluster(self, request: Request, pk: str) -> Response:
        """The majority is lost for good: build the cluster anew from this machine's data. 409 while a majority runs."""
        machine = self.row_for(request, Role.ADMINISTRATOR)
        body = ConfirmInput(data=request.data)
        body.is_valid(raise_exception=True)
        membership.rebuild(machine, confirm=body.validated_data["confirm"], actor=request.user.get_username(), now=timezone.now())
        return Response(MachineSerializer(self.get_object()).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(methods=["POST"], request=Nothing, responses={202: ReachSerializer})
    @extend_schema(methods=["GET"], responses=ReachSerializer)
    @action(detail=True, methods=["get", "post"], url_path="reach-test")
    def reach_test(self, request: Request, pk: str) -> Response:
        """POST: have the other machines try its Internal IP and Failover port, before any router runs there. GET: the last test."""
        now = timezone.now()
        if request.method == "POST":
            machine = self.row_for(request)
            reach.ask(machine, actor=request.user.get_username(), now=now)
        else:
            machine = self.get_object()
        found = reach.tested([machine.environment], now=now).get((machine.environment_id, machine.name))
        if found is None:
            raise NotFound(f"Nobody has tried the address of {machine.name} yet: POST here.")
        return Response(ReachSerializer(found).data, status=status.HTTP_202_ACCEPTED if request.method == "POST" else status.HTTP_200_OK)

    @extend_schema(request=Nothing, responses={202: RouterChangeSerializer})
    @action(detail=True, methods=["post"], url_path="resume-router-change")
    def resume_router_change(self, request: Request, pk: str) -> Response:
        """Go on with the environment's change of its routers that was stopped halfway or refused. 409 when there is none."""
        return self._go_on(request, membership.resume)

    @extend_schema(request=Nothing, responses={202: RouterChangeSerializer})
    @action(detail=True, methods=["post"], url_path="roll-back-router-change")
    def roll_back_router_change(self, request: Request, pk: str) -> Response:
        """Bring the environment's routers back to what they were before an unfinished change. 409 when there is none."""
        return self._go_on(request, membership.roll_back)

    def _go_on(self, request: Request, act: Any) -> Response:
        change = membership.unfinished(self.row_for(request, Role.OPERATOR).environment)
        if change is None:
            raise NotAllowed("No change of the routers is left unfinished: there is nothing to resume or to roll back.")
        begun = act(change, actor=request.user.get_username(), now=timezone.now())
        return Response(RouterChangeSerializer(begun).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses=RouterChangeSerializer(many=True))
    @action(detail=True, url_path="router-changes")
    def router_changes(self, request: Request, pk: str) -> Response:
        """Changes of the routers of this machine's environment, newest first."""
        changes: Any = self.get_object().environment.membership_changes.select_related("environment__project")
        return self.get_paginated_response(RouterChangeSerializer(self.paginate_queryset(changes) or [], many=True).data)


class RuntimeViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, FailedItems):
    serializer_class = RuntimeSerializer
    filterset_class = RuntimeFilter
    queryset = Runtime.objects.none()

    def get_queryset(self) -> QuerySet[Runtime]:
        return Runtime.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0).select_related(
            "environment__project", "machine", "connector", "desired_bundle"
        )

    @extend_schema(request=Nothing, responses={202: RuntimeSerializer})
    @action(detail=True, methods=["post"])
    def start(self, request: Request, pk: str) -> Response:
        return self._order(request, fleet.start)

    @extend_schema(request=Nothing, responses={202: RuntimeSerializer})
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: str) -> Response:
        """Stop the process; the intent persists until it is started again. A leader hands over first."""
        return self._order(request, fleet.stop)

    @extend_schema(request=Nothing, responses={202: RuntimeSerializer})
    @action(detail=True, methods=["post"])
    def restart(self, request: Request, pk: str) -> Response:
        return self._order(request, fleet.restart)

    def _order(self, request: Request, act: Any) -> Response:
        act(self.row_for(request, Role.OPERATOR))
        return Response(RuntimeSerializer(self.get_object()).data, status=status.HTTP_202_ACCEPTED)
