"""/api/v1/projects/<slug>/environments/<kind>/rules/ and freezes/; /api/v1/approvals/"""

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from deployments import approvals, promotion, windows
from deployments.api.moments import ZonedDateTimeField, due_moment
from deployments.models import Approval, ApprovalRequest, ApprovalStatus, DeploymentFreeze, DeploymentWindow, Release
from portal import access
from portal.api.fields import EnvironmentFilter, ExactInput, Gated, IdFilter, body_of, signed_in
from portal.errors import Invalid
from portal.models import Environment, EnvironmentKind, Role


class WindowSerializer(serializers.Serializer[Any]):
    days = serializers.RegexField(
        r"^[0-6]{1,7}$",
        error_messages={"invalid": 'Say the weekdays as digits in one text, 0 Monday to 6 Sunday: "01234" is Monday to Friday.'},
        help_text="Digits of weekdays, 0 Monday to 6 Sunday: 01234 is Monday to Friday.",
    )
    opens = serializers.TimeField(format="%H:%M")
    closes = serializers.TimeField(format="%H:%M", help_text="At or before `opens`: on the next day.")


class FreezeSerializer(serializers.ModelSerializer[DeploymentFreeze]):
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)

    class Meta:
        model = DeploymentFreeze
        fields = ("id", "starts_at", "ends_at", "reason", "created_by")


class FreezeInput(ExactInput):
    starts_at = ZonedDateTimeField()
    ends_at = ZonedDateTimeField()
    reason = serializers.CharField(max_length=promotion.LONGEST_FREEZE_REASON)


class RulesSerializer(serializers.Serializer[Any]):
    """What an environment asks before a release is activated or deployed there."""

    in_order = serializers.BooleanField()
    approvals = serializers.IntegerField()
    approval_days = serializers.IntegerField()
    time_zone = serializers.CharField()
    expires_after_minutes = serializers.IntegerField()
    windows = WindowSerializer(many=True)
    freezes = FreezeSerializer(many=True)
    position = serializers.IntegerField(help_text="In the order of promotion, the smallest first.")
    open_now = serializers.BooleanField()
    sentence = serializers.CharField(help_text="Why it is closed now; empty while it is open.")
    next_open_at = serializers.DateTimeField(allow_null=True)


class RulesInput(ExactInput):
    in_order = serializers.BooleanField(required=False)
    approvals = serializers.IntegerField(required=False)
    approval_days = serializers.IntegerField(required=False)
    time_zone = serializers.CharField(required=False, max_length=60)
    expires_after_minutes = serializers.IntegerField(required=False)
    windows = WindowSerializer(many=True, required=False, help_text="Replaces all windows.")


def _rules(environment: Environment) -> dict[str, Any]:
    now, rules = timezone.now(), promotion.rules_of(environment)
    verdict = windows.verdict(promotion.calendar_of(environment, rules), now)
    found = {
        **{name: getattr(rules, name) for name in ("in_order", "approvals", "approval_days", "time_zone", "expires_after_minutes")},
        "windows": list(DeploymentWindow.objects.filter(environment=environment)),
        "freezes": list(DeploymentFreeze.objects.filter(environment=environment, ends_at__gt=now).select_related("created_by")),
        "position": environment.position,
        "open_now": verdict.open,
        "sentence": verdict.sentence,
        "next_open_at": verdict.next_at,
    }
    return dict(RulesSerializer(found).data)


class RulesView(APIView):
    @extend_schema(responses=RulesSerializer)
    def get(self, request: Request, slug: str, kind: str) -> Response:
        """The rules of an environment."""
        return Response(_rules(access.get_environment(request.user, slug, kind)))

    @extend_schema(request=RulesInput, responses=RulesSerializer)
    def patch(self, request: Request, slug: str, kind: str) -> Response:
        """Change some of the rules (administrators); what changed is kept with who and when."""
        environment = access.get_environment(request.user, slug, kind, role=promotion.MAY_SET_RULES)
        given = body_of(RulesInput, request)
        lines = given.pop("windows", None)
        wanted = None if lines is None else [promotion.WindowInput(**line) for line in lines]
        promotion.set_rules(environment, by=signed_in(request), now=timezone.now(), windows_=wanted, **given)
        return Response(_rules(environment))


class OrderInput(ExactInput):
    direction = serializers.ChoiceField(choices=["earlier", "later"], help_text="One place; at the end nothing happens.")


class OrderView(APIView):
    @extend_schema(request=OrderInput, responses=RulesSerializer)
    def post(self, request: Request, slug: str, kind: str) -> Response:
        """Another place in the order of promotion (administrators); what changed is kept with who and when."""
        environment = access.get_environment(request.user, slug, kind, role=promotion.MAY_SET_RULES)
        earlier = body_of(OrderInput, request)["direction"] == "earlier"
        promotion.move(environment, earlier=earlier, by=signed_in(request), now=timezone.now())
        return Response(_rules(environment))


class FreezesView(APIView):
    @extend_schema(request=FreezeInput, responses={201: FreezeSerializer})
    def post(self, request: Request, slug: str, kind: str) -> Response:
        """Forbid activating and deploying for a time (operators)."""
        environment = access.get_environment(request.user, slug, kind, role=promotion.MAY_FREEZE)
        given = body_of(FreezeInput, request)
        made = promotion.freeze(
            environment,
            starts_at=due_moment(given["starts_at"], environment, field="starts_at"),
            ends_at=due_moment(given["ends_at"], environment, field="ends_at"),
            reason=given["reason"],
            by=signed_in(request),
            now=timezone.now(),
        )
        return Response(FreezeSerializer(made).data, status=status.HTTP_201_CREATED)


class FreezeView(APIView):
    @extend_schema(responses={204: None})
    def delete(self, request: Request, slug: str, kind: str, pk: int) -> Response:
        """Lift a freeze (operators)."""
        environment = access.get_environment(request.user, slug, kind, role=promotion.MAY_FREEZE)
        made = get_object_or_404(DeploymentFreeze, environment=environment, pk=pk)
        promotion.lift(made, by=signed_in(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


# ---------------------------------------------------------------------------------------------------------------- approvals


class ApprovalSerializer(serializers.ModelSerializer[Approval]):
    person = serializers.CharField(source="person.username")

    class Meta:
        model = Approval
        fields = ("person", "comment", "at", "withdrawn_at")


class ApprovalRequestSerializer(serializers.ModelSerializer[ApprovalRequest]):
    project = serializers.CharField(source="environment.project.slug")
    environment = serializers.CharField(source="environment.kind")
    release = serializers.IntegerField(source="release_id")
    release_number = serializers.IntegerField(source="release.number")
    created_by = serializers.CharField(source="created_by.username", default=None, allow_null=True)
    approvals = ApprovalSerializer(many=True)
    lacking = serializers.SerializerMethodField()

    class Meta:
        model = ApprovalRequest
        fields = (
            "id", "project", "environment", "release", "release_number", "status", "note", "reason", "values_digest", "plan_digest",
            "created_at", "created_by", "expires_at", "approvals", "lacking",
        )  # fmt: skip

    def get_lacking(self, row: ApprovalRequest) -> str:
        """Why the release is not approved there now; empty when it is. Only of open requests."""
        if row.status != ApprovalStatus.OPEN:
            return ""
        needed = promotion.rules_of(row.environment).approvals
        return approvals.state(row.release, row.environment, now=timezone.now()).lacking(needed) if needed else ""


class ApprovalRequestInput(ExactInput):
    release = serializers.IntegerField(help_text="Id of the release.")
    environment = serializers.ChoiceField(choices=EnvironmentKind.choices)
    note = serializers.CharField(default="", allow_blank=True, max_length=2000)


class CommentInput(ExactInput):
    comment = serializers.CharField(default="", allow_blank=True, max_length=2000)


class ApprovalRequestFilter(EnvironmentFilter):
    status = filters.ChoiceFilter(choices=ApprovalStatus.choices)
    release = IdFilter()


class ApprovalRequestViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Gated[ApprovalRequest]):
    """Requests to approve one release on one environment, newest first."""

    serializer_class = ApprovalRequestSerializer
    filterset_class = ApprovalRequestFilter
    queryset = ApprovalRequest.objects.none()
    lookup_value_regex = "[0-9]+"

    def get_queryset(self) -> QuerySet[ApprovalRequest]:
        rows = ApprovalRequest.objects.filter(environment__project__team__memberships__user_id=self.request.user.pk or 0)
        return rows.select_related("environment__project", "release__project", "created_by").prefetch_related("approvals__person")

    @extend_schema(request=ApprovalRequestInput, responses={201: ApprovalRequestSerializer})
    def create(self, request: Request) -> Response:
        """Ask for approval with the property values of now (developers)."""
        given = body_of(ApprovalRequestInput, request)
        rows = Release.objects.filter(project__team__memberships__user_id=request.user.pk or 0)
        release = rows.select_related("project").filter(pk=given["release"]).first()
        if release is None:
            raise Invalid(f"There is no release with id {given['release']}.", field="release")
        environment = access.get_environment(request.user, release.project.slug, given["environment"], role=Role.DEVELOPER)
        made = approvals.request(release, environment, note=given["note"], by=signed_in(request), now=timezone.now())
        return Response(ApprovalRequestSerializer(made).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=CommentInput, responses=ApprovalRequestSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Say yes; 409 for the requester, 412 when values changed since it was requested."""
        asked = self.row_for(request)
        approvals.approve(asked, comment=self._comment(request), by=signed_in(request), now=timezone.now())
        return self._answer()

    @extend_schema(request=CommentInput, responses=ApprovalRequestSerializer)
    @action(detail=True, methods=["post"])
    def reject(self, request: Request, pk: str) -> Response:
        """Say no, with the reason as `comment`; the request is closed."""
        asked = self.row_for(request)
        approvals.reject(asked, comment=self._comment(request), by=signed_in(request), now=timezone.now())
        return self._answer()

    @extend_schema(request=CommentInput, responses=ApprovalRequestSerializer)
    @action(detail=True, methods=["post"])
    def withdraw(self, request: Request, pk: str) -> Response:
        """The requester takes the request back; anybody else the own approval."""
        asked = self.row_for(request, role=Role.DEVELOPER)
        approvals.withdraw(asked, by=signed_in(request), now=timezone.now())
        return self._answer()

    def _comment(self, request: Request) -> str:
        given = body_of(CommentInput, request)
        return str(given["comment"])

    def _answer(self) -> Response:
        return Response(ApprovalRequestSerializer(self.get_object()).data)
