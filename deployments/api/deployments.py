"""/api/v1/deployments/"""

from typing import Any
from urllib.parse import urlencode

from django.db.models import Prefetch, QuerySet
from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from deployments import decisions, logs, results, rollback, rollout
from deployments.api.inputs import LeavingOutField, OverrideField
from deployments.models import Choice, Decision, Deployment, Exclusion, FrozenValues, StepAttempt, StepKind, StepRun
from portal import access
from portal.api.fields import EnvironmentFilter, ExactInput, Gated, Nothing, body_of, signed_in
from portal.models import EnvironmentKind


class StepAttemptSerializer(serializers.ModelSerializer[StepAttempt]):
    class Meta:
        model = StepAttempt
        fields = ("number", "status", "reason", "started_at", "ended_at")


class SeenMemberSerializer(serializers.Serializer[Any]):
    """A member of a group as its machine had told it when Balance looked."""

    runtime = serializers.CharField()
    status = serializers.CharField()
    state = serializers.CharField()
    epoch = serializers.IntegerField()
    release = serializers.IntegerField(allow_null=True)
    heard_at = serializers.DateTimeField(allow_null=True)
    left_out = serializers.BooleanField(required=False, help_text="Its machine was left out: it is not part of the proof.")


class EvidenceSerializer(serializers.Serializer[Any]):
    """What Balance failover saw of one group at its last look."""

    group = serializers.CharField()
    state = serializers.CharField()
    reason = serializers.CharField()
    at = serializers.DateTimeField()
    leader = serializers.CharField(allow_null=True, required=False)
    epoch = serializers.IntegerField(allow_null=True, required=False)
    members = SeenMemberSerializer(many=True, required=False)


class StepRunSerializer(serializers.ModelSerializer[StepRun]):
    attempts = StepAttemptSerializer(many=True)  # the former ones
    evidence = serializers.SerializerMethodField()
    confirmed_by = serializers.SerializerMethodField()

    class Meta:
        model = StepRun
        fields = (
            "number", "kind", "title", "stage", "stage_number", "lane", "machine", "connector", "group", "flow", "command", "url",
            "instruction", "confirmed_by", "condition", "retries", "status", "reason", "attempt", "attempts", "override", "evidence",
            "started_at", "ended_at", "deadline_at",
        )  # fmt: skip

    def get_confirmed_by(self, step: StepRun) -> str:
        """The least role that may confirm a Manual step; empty for any other."""
        return rollout.confirmed_by(step).value if step.kind == StepKind.MANUAL else ""

    @extend_schema_field(EvidenceSerializer(many=True))
    def get_evidence(self, step: StepRun) -> list[Any]:
        """Of Balance failover: per group who led, since which epoch, on which release, and when that was seen."""
        groups: list[Any] = step.memory.get("groups", []) if step.kind == StepKind.BALANCE_FAILOVER else []
        return groups


class DecisionSerializer(serializers.ModelSerializer[Decision]):
    step = serializers.IntegerField(source="step.number", default=None, allow_null=True)
    steps = serializers.SerializerMethodField()
    by = serializers.CharField(source="by.username", default=None, allow_null=True)

    class Meta:
        model = Decision
        fields = ("choice", "step", "steps", "machine", "reason", "at", "by")

    def get_steps(self, decision: Decision) -> list[int]:
        """The numbers of the steps that it is about: several where several lanes stopped; `step` is the first of them."""
        return decision.numbers


class ExclusionSerializer(serializers.ModelSerializer[Exclusion]):
    by = serializers.CharField(source="by.username", default=None, allow_null=True)
    promise = serializers.CharField(help_text="What it gets when it returns, or what became of that, in a sentence.")
    caught_up_by = serializers.IntegerField(source="caught_up_by_id", allow_null=True)

    class Meta:
        model = Exclusion
        fields = ("machine", "reason", "at", "by", "promise", "ended_at", "ended_because", "caught_up_by")


class OfferSerializer(serializers.Serializer[Any]):
    """A choice that can be made now; `refusal` says why it cannot."""

    choice = serializers.ChoiceField(choices=Choice.choices)
    label = serializers.CharField()  # type: ignore[assignment]  # what people read, not the field's own label
    effect = serializers.CharField()
    refusal = serializers.CharField()
    machine = serializers.CharField()
    steps = serializers.ListField(
        child=serializers.IntegerField(), help_text="The numbers of the steps it is about: those that run again, or the one to skip."
    )
    needs_reason = serializers.BooleanField()
    forbidden = serializers.CharField(help_text="Which window or freeze forbids it now: an operator overrides that with `override`.")


class ResumeInput(ExactInput):
    override = OverrideField()


class DecisionInput(ExactInput):
    choice = serializers.ChoiceField(choices=Choice.choices)
    reason = serializers.CharField(default="", allow_blank=True, help_text="Needed for override, skip and exclude.")
    machine = serializers.CharField(default="", allow_blank=True, help_text="For exclude: which offline machine; default: the step's.")
    step = serializers.IntegerField(
        default=None, allow_null=True, min_value=1, help_text="For skip: which step; needed where several lanes stopped."
    )
    override = OverrideField()


class LogLineSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField(allow_null=True, help_text="Of a step's line, without a gap; null: a machine's own line.")
    at = serializers.DateTimeField()
    level = serializers.CharField()
    step = serializers.IntegerField(allow_null=True)
    attempt = serializers.IntegerField()
    source = serializers.CharField()  # type: ignore[assignment]  # who said it, not the field's own source
    text = serializers.CharField()


class LogSerializer(serializers.Serializer[Any]):
    lines = LogLineSerializer(many=True)
    next = serializers.CharField(help_text="Query of the next call: goes on where this answer ended, without a gap.")
    complete = serializers.BooleanField(help_text="There was no more when this was read.")
    ended = serializers.BooleanField(help_text="Nothing more will be said.")


class ResultSerializer(serializers.Serializer[Any]):
    """What a deployment brought to a runtime; what runs there today may come from a later one."""

    runtime = serializers.CharField()
    how = serializers.ChoiceField(choices=["deployed", "unchanged", "stopped", "under way", "failed", "not reached", "skipped"])
    digest = serializers.CharField(help_text="Of the bundle that it was given; empty: none.")
    sentence = serializers.CharField()


class DeploymentSerializer(serializers.ModelSerializer[Deployment]):
    project = serializers.CharField(source="environment.project.slug")
    environment = serializers.CharField(source="environment.kind")
    release = serializers.IntegerField(source="release_id")
    release_number = serializers.IntegerField(source="release.number")
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    values_digest = serializers.SerializerMethodField()
    completes = serializers.IntegerField(source="completes_id", allow_null=True)
    decisions = DecisionSerializer(many=True)
    exclusions = ExclusionSerializer(many=True)
    rollback_of = serializers.IntegerField(source="rollback_of_id", allow_null=True)
    rolled_back_by = serializers.SerializerMethodField()
    scheduled_for = serializers.DateTimeField(
        source="scheduled.due_at",
        default=None,
        allow_null=True,
        help_text="When the schedule that began it was due; null: a person began it.",
    )
    steps = StepRunSerializer(many=True)
    results = serializers.SerializerMethodField()

    class Meta:
        model = Deployment
        fields = (
            "id", "project", "environment", "release", "release_number", "status", "completes", "rollback_of", "rolled_back_by",
            "scheduled_for", "created_at", "created_by", "started_at", "ended_at", "values_digest", "decisions", "exclusions", "steps",
            "results",
        )  # fmt: skip

    def get_rolled_back_by(self, deployment: Deployment) -> int | None:
        """The deployment that rolled it back."""
        return next((one.pk for one in deployment.rolled_back_by.all()), None)

    @extend_schema_field(ResultSerializer(many=True))
    def get_results(self, deployment: Deployment) -> list[Any]:
        """Runtime by runtime, what it brought."""
        found: list[Any] = list(ResultSerializer(results.results(deployment.steps.all()), many=True).data)
        return found

    def get_values_digest(self, deployment: Deployment) -> str | None:
        """SHA-256 over the property values it froze; equal values give an equal digest."""
        kept = list(deployment.frozen.all())
        return kept[0].digest if kept else None


class RollBackInput(ExactInput):
    project = serializers.SlugField()
    environment = serializers.ChoiceField(choices=EnvironmentKind.choices)
    back_to = serializers.IntegerField(required=False, help_text="The deployment to go back to, as looked up: 412 when another ran since.")
    override = OverrideField()
    leaving_out = LeavingOutField()


class RollBackSerializer(serializers.Serializer[Any]):
    """Where a roll back would lead."""

    back_to = serializers.IntegerField(source="back_to.pk", help_text="The deployment that ran with success.")
    release = serializers.IntegerField(source="back_to.release_id")
    release_number = serializers.IntegerField(source="back_to.release.number")
    undone = serializers.IntegerField(source="undone.pk", help_text="The newest deployment, which is rolled back.")


class DeploymentViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[Deployment]):
    """Executions of plans, newest first."""

    serializer_class = DeploymentSerializer
    filterset_class = EnvironmentFilter
    queryset = Deployment.objects.none()
    lookup_value_regex = "[0-9]+"

    def get_queryset(self) -> QuerySet[Deployment]:
        return (
            Deployment.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0)
            .select_related("environment__project", "release", "created_by")
            .prefetch_related(
                "steps__attempts",
                "begun_by",
                "rolled_back_by",
                "decisions__by",
                "decisions__step",
                "exclusions__by",
                "exclusions__caught_up_by",
                Prefetch("frozen", FrozenValues.objects.defer("values", "preferences")),
            )
        )

    @extend_schema(request=Nothing, responses={202: DeploymentSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """End it; a repeated cancel succeeds."""
        rollout.cancel(self.row_for(request), by=signed_in(request), now=timezone.now())
        return self._answer()

    @extend_schema(request=ResumeInput, responses={202: DeploymentSerializer})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Go on from the step that failed: the same run, its history kept. 409 in a freeze or outside the windows."""
        deployment = self.row_for(request)
        rollout.resume(deployment, by=signed_in(request), now=timezone.now(), override=body_of(ResumeInput, request)["override"])
        return self._answer()

    @extend_schema(responses=OfferSerializer(many=True), filters=False, operation_id="deployment_choices")
    @action(detail=True, pagination_class=None)
    def choices(self, request: Request, pk: str) -> Response:
        """What can be decided about a deployment that stopped at a failure, and what each choice does; empty for any other."""
        found = decisions.offers(self.get_object(), by=request.user, now=timezone.now())
        return Response(OfferSerializer(found, many=True).data)

    @extend_schema(request=DecisionInput, responses={202: DeploymentSerializer})
    @action(detail=True, methods=["post"])
    def decide(self, request: Request, pk: str) -> Response:
        """Retry, override, skip, exclude, roll-back or abort. Answers with the deployment that goes on: after a roll-back another one."""
        given = body_of(DecisionInput, request)
        after = decisions.decide(
            self.row_for(request),
            Choice(given["choice"]),
            by=signed_in(request),
            now=timezone.now(),
            reason=given["reason"],
            machine=given["machine"],
            step=given["step"],
            override=given["override"],
        )
        return Response(DeploymentSerializer(after).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=Nothing, responses={202: DeploymentSerializer})
    @action(detail=True, methods=["post"], url_path="steps/(?P<number>[0-9]{1,6})/confirm")
    def confirm(self, request: Request, pk: str, number: str) -> Response:
        """A person did what a Manual step asks for; a repeated confirmation succeeds. By the role that it names, else who may deploy."""
        rows = StepRun.objects.select_related("deployment__environment__project")
        step = get_object_or_404(rows, deployment=self.get_object(), number=number)
        access.require(request.user, step.deployment.environment.project.team_id, rollout.confirmed_by(step))
        rollout.confirm(step, by=signed_in(request), now=timezone.now())
        return self._answer()

    @extend_schema(
        responses=LogSerializer,
        filters=False,
        parameters=[
            OpenApiParameter("level", enum=logs.LEVELS, description="This level or above; default info."),
            OpenApiParameter("of", int, description="Of this step only."),
            OpenApiParameter("machine", description="Of this machine only."),
            OpenApiParameter("q", description="Lines that hold this text."),
            OpenApiParameter("step", int, description="From `next`: after this line."),
            OpenApiParameter("machines", description="From `next`: after these lines of machines."),
        ],
    )
    @action(detail=True, pagination_class=None)
    def log(self, request: Request, pk: str) -> Response:
        """The log from a place on, secrets masked. Follow it by calling again with `next` until `ended`."""
        deployment = self.get_object()
        asked = request.query_params
        level, of = asked.get("level", ""), asked.get("of", "")
        wanted = logs.Wanted(
            level=level if level in logs.LEVELS else logs.Wanted.level,
            step=int(of) if of.isdecimal() and len(of) < 6 else None,
            machine=asked.get("machine", "")[:40],
            search=asked.get("q", "").strip()[:100],
        )
        # Asked before the lines are read: what is said in between is still to come.
        ended = not logs.may_say_more(deployment)
        piece = logs.read(deployment, wanted, logs.Place.parse(asked.get("step", ""), asked.get("machines", "")))
        kept = {name: asked[name] for name in ("level", "of", "machine", "q") if asked.get(name)}
        place = {"step": piece.place.step, "machines": piece.place.machines_text}
        answer = {"lines": piece.lines, "next": urlencode({**kept, **place}), "complete": piece.complete, "ended": ended and piece.complete}
        return Response(LogSerializer(answer).data)

    @extend_schema(
        methods=["get"],
        parameters=[OpenApiParameter("project", str, required=True), OpenApiParameter("environment", str, required=True)],
        responses=RollBackSerializer,
    )
    @extend_schema(methods=["post"], request=RollBackInput, responses={202: DeploymentSerializer})
    @action(detail=False, methods=["get", "post"], url_path="rollback")
    def roll_back(self, request: Request) -> Response:
        """GET: where a roll back of the environment would lead (404: nowhere). POST: do it; what is scheduled there is held."""
        if request.method == "GET":
            asked = request.query_params
            environment = access.get_environment(request.user, asked.get("project", ""), asked.get("environment", ""))
            target = rollback.target(environment)
            if target is None:
                raise NotFound(f"There is nothing to roll back to on {environment.name}: no earlier release ran there with success.")
            return Response(RollBackSerializer(target).data)
        given = body_of(RollBackInput, request)
        environment = access.get_environment(request.user, given["project"], given["environment"], to_edit=True)
        begun = rollback.start(
            environment,
            expected=given.get("back_to"),
            by=signed_in(request),
            now=timezone.now(),
            override=given["override"],
            leaving_out=given["leaving_out"],
        )
        return Response(DeploymentSerializer(begun).data, status=status.HTTP_202_ACCEPTED)

    def _answer(self) -> Response:
        return Response(DeploymentSerializer(self.get_object()).data, status=status.HTTP_202_ACCEPTED)
