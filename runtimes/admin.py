"""Machines and what they reported, for support. Wishes are changed by the pages and the API, whose acts guard them; here they are read."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from portal.admin_site import ReadOnly, TabularInline
from portal.templatetags.baton import epoch as shown_epoch
from runtimes import secrecy
from runtimes.models import (
    Alarm,
    Bundle,
    CertificateAuthority,
    CommandRun,
    FailoverGroup,
    GroupMember,
    GroupRequest,
    JoinToken,
    LeadershipChange,
    LeadershipEnd,
    LeadershipInterruption,
    Machine,
    MachineCertificate,
    MembershipChange,
    Router,
    Runtime,
    RuntimeLog,
    TimedSwitch,
)


@admin.display(description="Epoch", ordering="epoch")
def epoch(row: FailoverGroup | LeadershipChange | LeadershipEnd | LeadershipInterruption) -> str:
    return shown_epoch(row.epoch)


@admin.register(Machine)
class MachineAdmin(ReadOnly):
    list_display = ("name", "kind", "environment", "joined_at", "last_report_at", "agent_version", "orders_version", "orders_taken")
    list_filter = ("environment__kind", "environment__project", "kind")
    search_fields = ("name",)
    list_select_related = ("environment__project",)
    exclude = ("credential_digest",)


@admin.register(Router)
class RouterAdmin(ReadOnly):
    list_display = (
        "machine", "desired_running", "desired_host", "desired_port", "desired_profile", "observed_state", "observed_version",
        "observed_reason",
    )  # fmt: skip
    list_filter = ("observed_state", "machine__environment__project")
    list_select_related = ("machine",)


@admin.register(Runtime)
class RuntimeAdmin(ReadOnly):
    list_display = ("key", "environment", "failover", "preference", "desired_running", "observed_state", "observed_release", "observed_at")
    list_filter = ("environment__kind", "environment__project", "observed_state", "failover")
    search_fields = ("machine__name", "connector__name")
    list_select_related = ("machine", "connector", "environment__project")


class MemberInline(TabularInline):
    model = GroupMember
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("runtime__machine", "runtime__connector")


@admin.register(FailoverGroup)
class FailoverGroupAdmin(ReadOnly):
    list_display = ("name", "environment", "failover", epoch, "last_gap_seconds", "last_gap_at")
    list_filter = ("environment__kind", "environment__project")
    search_fields = ("name",)
    list_select_related = ("environment__project",)
    inlines = (MemberInline,)


@admin.register(LeadershipChange)
class LeadershipChangeAdmin(ReadOnly):
    list_display = ("group", epoch, "runtime", "previous", "cause", "actor", "at", "gap_seconds")
    list_filter = ("cause", "group__environment__kind", "group__environment__project")
    search_fields = ("group__name", "runtime", "actor")
    date_hierarchy = "at"
    list_select_related = ("group",)


@admin.register(LeadershipEnd)
class LeadershipEndAdmin(ReadOnly):
    list_display = ("group", epoch, "runtime", "cause", "reason", "at")
    list_filter = ("cause", "group__environment__project")
    list_select_related = ("group",)


@admin.register(LeadershipInterruption)
class LeadershipInterruptionAdmin(ReadOnly):
    list_display = ("group", epoch, "runtime", "cause", "reason", "since", "until", "seconds")
    list_filter = ("cause", "group__environment__project")
    list_select_related = ("group",)


@admin.register(GroupRequest)
class GroupRequestAdmin(ReadOnly):
    list_display = ("group", "kind", "machine", "cause", "actor", "status", "reason", "created_at", "ended_at")
    list_filter = ("status", "kind", "group__environment__project")
    search_fields = ("group__name", "machine", "actor", "reason")
    list_select_related = ("group",)


@admin.register(TimedSwitch)
class TimedSwitchAdmin(ReadOnly):
    list_display = ("group", "machine", "actor", "until", "ended_at", "ending", "reason")
    list_filter = ("ending", "group__environment__project")
    list_select_related = ("group",)


@admin.register(Alarm)
class AlarmAdmin(ReadOnly):
    list_display = ("kind", "group", "runtime", "subject", "sentence", "since", "raised_at", "cleared_at")
    list_filter = ("kind", "group__environment__kind", "group__environment__project")
    list_select_related = ("group",)


@admin.register(RuntimeLog)
class RuntimeLogAdmin(ReadOnly):
    list_display = ("at", "machine", "source", "level", "shown")
    list_filter = ("level", "machine__environment__kind", "machine__environment__project")
    search_fields = ("source",)
    list_select_related = ("machine",)
    show_full_result_count = False
    exclude = ("text",)
    readonly_fields = ("shown",)

    @admin.display(description="text")
    def shown(self, row: RuntimeLog) -> str:
        """Also without what became a secret since it was written down."""
        return secrecy.masked(row.text, secrecy.pattern(row.machine.environment_id))


@admin.register(JoinToken)
class JoinTokenAdmin(ReadOnly):
    list_display = ("machine", "created_by", "created_at", "expires_at", "used_at")
    list_select_related = ("machine", "created_by")
    exclude = ("digest",)


@admin.register(CertificateAuthority)
class CertificateAuthorityAdmin(ReadOnly):
    list_display = ("environment", "number", "created_at", "is_being_renewed", "revoked_number")
    list_select_related = ("environment__project",)
    exclude = ("encrypted_key",)

    @admin.display(boolean=True, description="Being renewed")
    def is_being_renewed(self, row: CertificateAuthority) -> bool:
        return bool(row.former)


@admin.register(MembershipChange)
class MembershipChangeAdmin(ReadOnly):
    list_display = ("environment", "actor", "status", "refused", "sentence", "created_at", "ended_at")
    list_filter = ("status", "environment__kind", "environment__project")
    search_fields = ("actor", "sentence")
    list_select_related = ("environment__project",)


@admin.register(MachineCertificate)
class MachineCertificateAdmin(ReadOnly):
    list_display = ("name", "authority", "serial", "issued_at", "expires_at", "revoked_at", "revoked_because")
    list_filter = ("authority__environment__kind", "authority__environment__project")
    search_fields = ("name", "serial")
    list_select_related = ("authority__environment__project",)


@admin.register(Bundle)
class BundleAdmin(ReadOnly):
    list_display = ("digest", "environment", "release_number", "created_at")
    list_filter = ("environment__kind", "environment__project")
    exclude = ("content",)  # resolved values, secrets included
    list_select_related = ("environment__project",)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).defer("content")


@admin.register(CommandRun)
class CommandRunAdmin(ReadOnly):
    list_display = ("machine", "name", "actor", "status", "exit_status", "reason", "created_at", "ended_at")
    list_filter = ("status", "machine__environment__kind")
    list_select_related = ("machine",)
    exclude = ("output",)
