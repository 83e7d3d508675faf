"""/api/v1/projects/<slug>/environments/<kind>/plan/: the ordered recipe of an environment, and what is wrong with it.

Every answer bears the plan's digest as its ETag; an edit with `If-Match` is refused (412) when somebody changed the plan since.
"""

from collections.abc import Callable
from typing import Any

from django.db import transaction
from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from deployments import plans
from deployments.models import STEP_FIELDS, Condition, HandOvers, Plan, Step, StepKind
from portal import access
from portal.api.fields import EnvironmentChoice, ExactInput, Nothing, body_of, if_match
from portal.models import Environment, Role

IF_MATCH = OpenApiParameter(
    "If-Match", str, OpenApiParameter.HEADER, description="The ETag of the plan as it was seen: 412 when it changed."
)
MOST_STEPS = 1000


class PlanStepSerializer(serializers.ModelSerializer[Step]):
    class Meta:
        model = Step
        fields = ("id", "position", "title", *STEP_FIELDS)


class PlanSerializer(serializers.Serializer[Any]):
    project = serializers.CharField()
    environment = serializers.CharField()
    digest = serializers.CharField(help_text="Of the steps in their order; the ETag too.")
    updated_at = serializers.DateTimeField()
    steps = PlanStepSerializer(many=True)
    problems = serializers.ListField(child=serializers.CharField(), help_text="Why it cannot be deployed.")
    findings = serializers.ListField(child=serializers.CharField(), help_text="Problems, and what is weak about it.")


class StepFieldsInput(ExactInput):
    """Fields of a step; what its kind does not use is left empty."""

    machine = serializers.CharField(required=False, allow_blank=True, max_length=40)
    connector = serializers.CharField(required=False, allow_blank=True, max_length=40, help_text="With machine: the runtime.")
    group = serializers.CharField(required=False, allow_blank=True, max_length=40)
    flow = serializers.CharField(required=False, allow_blank=True, max_length=80)
    instruction = serializers.CharField(required=False, allow_blank=True)
    confirm_role = serializers.ChoiceField(required=False, allow_blank=True, choices=Role.choices)
    command = serializers.CharField(required=False, allow_blank=True, max_length=80)
    url = serializers.CharField(required=False, allow_blank=True, max_length=500)
    expected_status = serializers.IntegerField(required=False)
    hand_overs = serializers.ChoiceField(required=False, allow_blank=True, choices=HandOvers.choices)
    stage = serializers.CharField(required=False, allow_blank=True, max_length=40)
    lane = serializers.CharField(required=False, allow_blank=True, max_length=40)
    condition = serializers.ChoiceField(required=False, choices=Condition.choices)
    retries = serializers.IntegerField(required=False)
    timeout_seconds = serializers.IntegerField(required=False, help_text="Left out: 120, of a manual step a day.")


class PlanStepInput(StepFieldsInput):
    kind = serializers.ChoiceField(choices=StepKind.choices)


class NewStepInput(PlanStepInput):
    position = serializers.IntegerField(
        required=False, min_value=1, help_text="Counted from 1; left out: last, but before Balance failover."
    )


class ChangedStepInput(StepFieldsInput):
    position = serializers.IntegerField(required=False, min_value=1, help_text="Its new place, counted from 1.")


class WholePlanInput(ExactInput):
    steps = serializers.ListField(child=PlanStepInput(), max_length=MOST_STEPS)


class CopyInput(EnvironmentChoice):
    """`environment` gets the plan; its own steps are replaced."""

    seen = serializers.CharField(default="", allow_blank=True, help_text="`digest` of the plan that is replaced: 412 when it changed.")


def _answer(plan: Plan, *, status: int = 200) -> Response:
    plan.refresh_from_db()
    environment, steps = plan.environment, list(plan.steps.all())
    told = {
        "project": environment.project.slug,
        "environment": environment.kind,
        "digest": plans.digest_of(steps),
        "updated_at": plan.updated_at,
        "steps": steps,
        "problems": plans.problems(plan),
        "findings": plans.lint(plan),
    }
    return Response(PlanSerializer(told).data, status=status, headers={"ETag": f'"{told["digest"]}"'})


def _editable(request: Request, slug: str, kind: str) -> Plan:
    return plans.plan_of(access.get_environment(request.user, slug, kind, to_edit=True))


def _edit(request: Request, plan: Plan, act: Callable[[], object], *, status: int = 200) -> Response:
    """Carry out an edit, on the plan that the caller saw; answers with the plan after it."""
    with transaction.atomic():
        if seen := if_match(request):
            plans.refuse_changed(plan, seen)
        act()
    return _answer(plan, status=status)


def _step(plan: Plan, pk: int) -> Step:
    return get_object_or_404(Step.objects.select_related("plan__environment__project"), plan=plan, pk=pk)


class PlanView(APIView):
    @extend_schema(responses=PlanSerializer)
    def get(self, request: Request, slug: str, kind: str) -> Response:
        """The plan: its steps in order, and what is wrong with it."""
        return _answer(plans.plan_of(access.get_environment(request.user, slug, kind)))

    @extend_schema(request=WholePlanInput, responses=PlanSerializer, parameters=[IF_MATCH])
    def put(self, request: Request, slug: str, kind: str) -> Response:
        """Replace all steps by these, or none of them when one is wrong; errors name the step ("steps.2.machine")."""
        plan = _editable(request, slug, kind)
        items = body_of(WholePlanInput, request)["steps"]
        steps = plans.compose(plan.environment, items)
        return _edit(request, plan, lambda: plans.replace(plan.environment, steps))


class PlanSteps(APIView):
    @extend_schema(request=NewStepInput, responses={201: PlanSerializer}, parameters=[IF_MATCH])
    def post(self, request: Request, slug: str, kind: str) -> Response:
        """Add a step."""
        plan, given = _editable(request, slug, kind), body_of(NewStepInput, request)
        what, position = StepKind(given.pop("kind")), given.pop("position", None)
        return _edit(request, plan, lambda: plans.add_step(plan, what, position=position, **given), status=status.HTTP_201_CREATED)


class PlanStep(APIView):
    @extend_schema(request=ChangedStepInput, responses=PlanSerializer, parameters=[IF_MATCH])
    def patch(self, request: Request, slug: str, kind: str, pk: int) -> Response:
        """Change fields of a step, or its `position`; what is not named stays. Its kind stays: another kind is another step."""
        plan, given = _editable(request, slug, kind), body_of(ChangedStepInput, request)
        step, position = _step(plan, pk), given.pop("position", None)

        def change() -> None:
            if given:
                plans.change_step(step, **given)
            if position is not None:
                plans.move_step(step, position, stage=given.get("stage"), lane=given.get("lane"))

        return _edit(request, plan, change)

    @extend_schema(responses=PlanSerializer, parameters=[IF_MATCH])
    def delete(self, request: Request, slug: str, kind: str, pk: int) -> Response:
        """Take a step out; answers with the plan without it. One that is gone already is no error."""
        plan = _editable(request, slug, kind)
        step = Step.objects.filter(plan=plan, pk=pk).select_related("plan").first()
        return _edit(request, plan, lambda: plans.remove_step(step) if step is not None else None)


class DefaultPlan(APIView):
    @extend_schema(request=Nothing, responses=PlanSerializer, parameters=[IF_MATCH])
    def post(self, request: Request, slug: str, kind: str) -> Response:
        """Replace the steps by the default plan: alerting off, routers, every runtime, Balance failover."""
        plan = _editable(request, slug, kind)
        return _edit(request, plan, lambda: plans.default_plan(plan.environment))


class FollowersFirstPlan(APIView):
    @extend_schema(request=Nothing, responses=PlanSerializer, parameters=[IF_MATCH])
    def post(self, request: Request, slug: str, kind: str) -> Response:
        """Replace the steps by a plan made from who leads now: followers, hand over, former leaders, Balance failover."""
        plan = _editable(request, slug, kind)
        return _edit(request, plan, lambda: plans.followers_first_plan(plan.environment, now=timezone.now()))


class PlanCopy(APIView):
    @extend_schema(request=CopyInput, responses=PlanSerializer)
    def post(self, request: Request, slug: str, kind: str) -> Response:
        """Replace another environment's plan by this one; answers with that plan and what of it does not exist there."""
        source = plans.plan_of(access.get_environment(request.user, slug, kind))
        given = body_of(CopyInput, request)
        target: Environment = access.get_environment(request.user, slug, given["environment"], to_edit=True)
        with transaction.atomic():
            if given["seen"]:
                plans.refuse_changed(plans.plan_of(target), given["seen"])
            copied = plans.copy_to(source, target)
        return _answer(copied)
