"""Failed items of a flow: /api/v1/runtimes/{id}/failed-items/. A question is asked (202), its answer is fetched."""

from typing import Any

from django.http import Http404
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from portal import access
from portal.api.fields import ExactInput, Gated, signed_in
from portal.models import Role
from runtimes.items import acts, ask, content_of
from runtimes.models import ItemInquiry, Runtime
from runtimes.protocol import ItemAct


class FailedItemSerializer(serializers.Serializer[Any]):
    key = serializers.CharField(help_text="By which acts name it")
    item = serializers.CharField(help_text="Message id")
    name = serializers.CharField()
    size = serializers.IntegerField(help_text="Bytes")
    reason = serializers.CharField()
    tries = serializers.IntegerField()
    at = serializers.CharField()
    epoch = serializers.IntegerField()
    machine = serializers.CharField()


class ActedOnSerializer(serializers.Serializer[Any]):
    key = serializers.CharField()
    item = serializers.CharField(help_text="Message id")
    name = serializers.CharField()


class InquirySerializer(serializers.ModelSerializer[ItemInquiry]):
    """`status` is pending until the agent answered, then answered; expired when it did not in time. `content`: for who may look at it.
    `acted`, `done`: on how many items an act was done, and on which (of many the first)."""

    inquiry = serializers.UUIDField(source="id")
    status = serializers.SerializerMethodField()
    items = FailedItemSerializer(many=True)
    done = ActedOnSerializer(many=True)
    content = serializers.SerializerMethodField()

    class Meta:
        model = ItemInquiry
        fields = (
            "inquiry", "status", "flow", "act", "problem", "total", "items", "content", "size", "acted", "done",
            "created_at", "answered_at",
        )  # fmt: skip

    def get_status(self, inquiry: ItemInquiry) -> str:
        if inquiry.answered_at is not None:
            return "answered"
        return "pending" if inquiry.expires_at > timezone.now() else "expired"

    def get_content(self, inquiry: ItemInquiry) -> str:
        return content_of(inquiry) if inquiry.act == ItemAct.VIEW and self.context.get("may_look") else ""


class ItemActSerializer(serializers.ModelSerializer[ItemInquiry]):
    """What a person did to failed items; `acted` is null where the machine did not answer, or its agent is older."""

    act = serializers.CharField(help_text="retry or discard")
    done = ActedOnSerializer(many=True)

    class Meta:
        model = ItemInquiry
        fields = ("flow", "flow_name", "act", "actor", "created_at", "answered_at", "acted", "done", "problem")


class InquiryInput(ExactInput):
    flow = serializers.CharField(help_text="Key of the flow, as in the runtime's `flows`")
    act = serializers.ChoiceField(choices=[act.value for act in ItemAct if act != ItemAct.OTHER], default=ItemAct.LIST.value)
    keys = serializers.ListField(child=serializers.CharField(), default=list, max_length=200, help_text="Empty for retry and discard: all")


class FailedItems(Gated[Runtime]):
    """Mixed into the endpoints of runtimes."""

    @extend_schema(request=InquiryInput, responses={202: InquirySerializer})
    @action(detail=True, methods=["post"], url_path="failed-items")
    def failed_items(self, request: Request, pk: str) -> Response:
        """Ask the machine: list (every member), or view, retry, discard (who may deploy there). Fetch the answer by its id."""
        body = InquiryInput(data=request.data)
        body.is_valid(raise_exception=True)
        act = ItemAct(body.validated_data["act"])
        runtime = self.row_for(request, Role.VIEWER if act is ItemAct.LIST else None)
        actor = signed_in(request).get_username()
        inquiry = ask(runtime, body.validated_data["flow"], act, keys=body.validated_data["keys"], actor=actor, now=timezone.now())
        return Response(InquirySerializer(inquiry).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses=ItemActSerializer(many=True))
    @action(detail=True, url_path="item-acts")
    def item_acts(self, request: Request, pk: str) -> Response:
        """Who tried failed items again or discarded them, and which; the latest 200, newest first."""
        return Response(ItemActSerializer(acts([self.row_for(request, Role.VIEWER)])[:200], many=True).data)

    @extend_schema(responses=InquirySerializer)
    @action(detail=True, url_path="failed-items/(?P<inquiry>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
    def one_inquiry(self, request: Request, pk: str, inquiry: str) -> Response:
        """The answer, once the agent gave it."""
        runtime = self.row_for(request, Role.VIEWER)
        row = ItemInquiry.objects.filter(pk=inquiry, runtime=runtime).first()
        if row is None:
            raise Http404("There is no such question about this runtime; answers are kept for 15 minutes.")
        environment = runtime.environment
        may_look = access.may(request.user, environment.project.team_id, access.role_to_deploy(environment))
        return Response(InquirySerializer(row, context={"may_look": may_look}).data)
