"""Releases, plans and deployments, for support: read only, for each is either immutable or moved by acts that guard it."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from deployments.models import (
    Activation,
    ApprovalRequest,
    Decision,
    Deployment,
    EnvironmentRules,
    Exclusion,
    FrozenValues,
    Plan,
    Release,
    ReleaseRemoval,
    RetentionRule,
    RuleChange,
    RuleOverride,
    Step,
    StepAttempt,
    StepLog,
    StepRun,
)
from portal.admin_site import ReadOnly, TabularInline


class ReadOnlyInline(TabularInline):
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Release)
class ReleaseAdmin(ReadOnly):
    list_display = ("number", "name", "project", "created_at", "created_by", "digest")
    list_filter = ("project",)
    search_fields = ("name", "note", "digest")
    list_select_related = ("project", "created_by")


@admin.register(RetentionRule)
class RetentionRuleAdmin(ReadOnly):
    list_display = ("project", "enabled", "keep_last", "keep_days", "updated_at", "updated_by")
    list_select_related = ("project", "updated_by")


@admin.register(ReleaseRemoval)
class ReleaseRemovalAdmin(ReadOnly):
    list_display = ("number", "name", "project", "deployments", "at", "by")
    list_filter = ("project",)
    list_select_related = ("project", "by")


@admin.register(Activation)
class ActivationAdmin(ReadOnly):
    list_display = ("release", "environment", "status", "due_at", "deploys", "activated_at", "created_by", "reason")
    list_filter = ("status", "environment__kind", "environment__project")
    list_select_related = ("release", "environment__project", "created_by")


class StepInline(ReadOnlyInline):
    model = Step


@admin.register(EnvironmentRules)
class EnvironmentRulesAdmin(ReadOnly):
    list_display = ("environment", "in_order", "approvals", "approval_days", "time_zone", "expires_after_minutes", "updated_at")
    list_select_related = ("environment__project",)


@admin.register(RuleChange)
class RuleChangeAdmin(ReadOnly):
    list_display = ("at", "environment", "by", "sentence")
    list_filter = ("environment__kind", "environment__project")
    list_select_related = ("environment__project", "by")


@admin.register(RuleOverride)
class RuleOverrideAdmin(ReadOnly):
    list_display = ("at", "environment", "release", "act", "by", "reason")
    list_filter = ("environment__kind", "environment__project")
    list_select_related = ("environment__project", "release", "by")


@admin.register(ApprovalRequest)
class ApprovalRequestAdmin(ReadOnly):
    list_display = ("environment", "release", "status", "created_by", "created_at", "expires_at", "reason")
    list_filter = ("status", "environment__kind", "environment__project")
    list_select_related = ("environment__project", "release", "created_by")


@admin.register(Plan)
class PlanAdmin(ReadOnly):
    list_display = ("environment", "updated_at")
    list_select_related = ("environment__project",)
    inlines = (StepInline,)


class StepRunInline(ReadOnlyInline):
    model = StepRun
    fields = ("number", "kind", "machine", "connector", "group", "status", "attempt", "reason", "started_at", "ended_at")


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly):
    list_display = ("id", "environment", "release", "status", "created_by", "created_at", "started_at", "ended_at")
    list_filter = ("status", "environment__kind", "environment__project")
    list_select_related = ("environment__project", "release", "created_by")
    inlines = (StepRunInline,)


@admin.register(FrozenValues)
class FrozenValuesAdmin(ReadOnly):
    list_display = ("deployment_id", "number", "digest", "created_at", "created_by")
    list_filter = ("deployment__environment__kind", "deployment__environment__project")
    list_select_related = ("created_by",)


@admin.register(StepRun)
class StepRunAdmin(ReadOnly):
    list_display = (
        "deployment_id",
        "number",
        "kind",
        "machine",
        "connector",
        "group",
        "status",
        "attempt",
        "reason",
        "started_at",
        "ended_at",
    )
    list_filter = ("status", "kind", "deployment__environment__kind", "deployment__environment__project")
    search_fields = ("machine", "connector", "group", "reason")


@admin.register(StepAttempt)
class StepAttemptAdmin(ReadOnly):
    list_display = ("step", "number", "status", "reason", "started_at", "ended_at")
    list_filter = ("status",)
    list_select_related = ("step",)


@admin.register(Decision)
class DecisionAdmin(ReadOnly):
    list_display = ("deployment_id", "step", "choice", "machine", "reason", "at", "by")
    list_filter = ("choice",)
    list_select_related = ("step", "by")


@admin.register(Exclusion)
class ExclusionAdmin(ReadOnly):
    list_display = ("deployment_id", "machine", "reason", "at", "by", "ended_at", "ended_because", "caught_up_by_id")
    list_select_related = ("by",)


@admin.register(StepLog)
class StepLogAdmin(ReadOnly):
    list_display = ("deployment_id", "number", "at", "level", "machine", "text")
    list_filter = ("level", "deployment__environment__kind")
    search_fields = ("text", "machine")
    show_full_result_count = False
