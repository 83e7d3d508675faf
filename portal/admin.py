"""Teams, design and, first of all, Properties in the admin site. Edits of a Property pass portal.properties, as on the pages."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import models
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from portal import properties
from portal.admin_site import ModelAdmin, ModelForm, ReadOnly, TabularInline
from portal.errors import Invalid, NotAllowed
from portal.models import (
    Connector,
    DesignedMachine,
    Environment,
    Flow,
    FlowVersion,
    Group,
    Heartbeat,
    Membership,
    Placement,
    Project,
    Property,
    PropertyChange,
    PropertyType,
    System,
    Team,
)

MASK = "•••"


class PropertyForm(ModelForm):
    """A secret's value is written, never read: its field is empty, and empty keeps it."""

    class Meta:
        model = Property
        fields = ("environment", "key", "machine", "connector", "value", "secret")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        value = self.fields.get("value")
        if value is None:
            return
        value.required = False
        if self.instance.pk and self.instance.secret:
            value.widget = forms.PasswordInput(
                {"placeholder": MASK, "autocomplete": "new-password", "class": "vTextField"}, render_value=False
            )
            value.help_text = "A secret is set, and never shown. Leave it empty to keep it."
            self.initial["value"] = ""
        else:
            value.widget = forms.TextInput({"class": "vTextField"})

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        kept = Property.objects.filter(pk=self.instance.pk).first() if self.instance.pk else None
        if kept is not None and kept.secret:
            if "secret" in data and not data["secret"] and not data.get("value"):
                self.add_error("secret", "A kept secret cannot be made readable: fill in a new value to make it an ordinary property.")
            if not self.errors and not data.get("value"):
                try:
                    data["value"] = kept.reveal()
                except NotAllowed as refusal:
                    self.add_error("value", refusal.sentence)
        whole = {name: data.get(name, getattr(self.instance, name, "")) for name in ("key", "machine", "connector", "value")}
        environment = data.get("environment") or (kept.environment if kept else None)
        if environment and whole["key"] and not self.errors:
            try:
                data["value"] = properties.check_value(
                    environment,
                    whole["key"],
                    whole["value"] or "",
                    machine=whole["machine"] or "",
                    connector=whole["connector"] or "",
                    secret=data.get("secret", kept.secret if kept else False),
                )
            except Invalid as refusal:
                self.add_error(refusal.field if refusal.field in self.fields else None, refusal.sentence)
        return data


class ScopeFilter(admin.SimpleListFilter):
    title = "scope"
    parameter_name = "scope"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("global", "Global"), ("machine", "One machine"), ("connector", "One connector"), ("runtime", "One runtime")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        scopes = {
            "global": Q(machine="", connector=""),
            "machine": ~Q(machine="") & Q(connector=""),
            "connector": Q(machine="") & ~Q(connector=""),
            "runtime": ~Q(machine="") & ~Q(connector=""),
        }
        return queryset.filter(scopes[value]) if (value := self.value()) in scopes else queryset


class EnvironmentFilter(admin.SimpleListFilter):
    """The environment's kind; together with the filter by project."""

    title = "environment"
    parameter_name = "environment"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(row.pk), str(row)) for row in Environment.objects.select_related("project")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset.filter(environment_id=int(value)) if value and value.isdigit() else queryset


@admin.register(Property)
class PropertyAdmin(ModelAdmin):
    form = PropertyForm
    list_display = ("key", "environment", "scope", "value", "shown", "secret", "updated_at", "updated_by")
    list_display_links = ("key",)
    list_editable = ("value",)
    list_filter = (EnvironmentFilter, "environment__kind", ScopeFilter, "secret")
    search_fields = ("key", "machine", "connector")
    list_select_related = ("environment__project", "updated_by")
    list_per_page = 100
    fields = ("environment", "key", "machine", "connector", "value", "secret", "updated_at", "updated_by")
    readonly_fields = ("updated_at", "updated_by")

    def get_changelist_form(self, request: HttpRequest, **kwargs: Any) -> type[ModelForm]:
        return super().get_changelist_form(request, form=PropertyForm, **kwargs)

    @admin.display(description="kept")
    def shown(self, row: Property) -> str:
        return f"{MASK} {row.shown_value}" if row.secret else ""

    def save_model(self, request: HttpRequest, obj: Property, form: Any, change: bool) -> None:
        wished = properties.Edit(obj.environment, obj.key, obj.value, obj.machine, obj.connector, obj.secret)
        edits = [wished]
        if change:
            kept = Property.objects.select_related("environment").get(pk=obj.pk)
            former = properties.Edit(kept.environment, kept.key, None, kept.machine, kept.connector)
            edits = [wished] if former.cell == wished.cell else [former, wished]
        properties.set_values(edits, by=request.user)
        kept = Property.objects.get(environment=obj.environment, key=obj.key, machine=obj.machine, connector=obj.connector)
        obj.pk, obj.value, obj.sealed, obj.secret = kept.pk, kept.value, kept.sealed, kept.secret

    def delete_model(self, request: HttpRequest, obj: Property) -> None:
        self.delete_queryset(request, Property.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Property]) -> None:
        by_project: dict[int, list[properties.Edit]] = {}
        for row in queryset.select_related("environment"):
            edit = properties.Edit(row.environment, row.key, None, row.machine, row.connector)
            by_project.setdefault(row.environment.project_id, []).append(edit)
        for edits in by_project.values():
            properties.set_values(edits, by=request.user, cause="deleted")

    def response_post_save_change(self, request: HttpRequest, obj: Property) -> Any:
        messages.info(request, "Machines get the value with the next deployment, not before.")
        return super().response_post_save_change(request, obj)

    formfield_overrides = {models.TextField: {"widget": forms.TextInput({"class": "vTextField"})}}


@admin.register(PropertyType)
class PropertyTypeAdmin(ReadOnly):
    """Declared on the page Properties and in the API, where present values are checked."""

    list_display = ("key", "project", "kind", "updated_at", "updated_by")
    list_filter = ("project", "kind")
    search_fields = ("key",)


@admin.register(PropertyChange)
class PropertyChangeAdmin(ReadOnly):
    list_display = ("at", "key", "environment", "scope", "cause", "by")
    list_filter = ("environment__project", "environment__kind", "cause")
    search_fields = ("key",)
    list_select_related = ("environment__project", "by")
    exclude = ("sealed_before",)


class MembershipInline(TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("user",)


@admin.register(Team)
class TeamAdmin(ModelAdmin):
    list_display = ("name", "slug")
    search_fields = ("name", "slug")
    prepopulated_fields = {"slug": ("name",)}
    inlines = (MembershipInline,)


class EnvironmentInline(TabularInline):
    model = Environment
    extra = 0
    fields = ("kind", "position", "timing_profile", "generation")
    readonly_fields = ("generation",)


@admin.register(Project)
class ProjectAdmin(ModelAdmin):
    list_display = ("name", "slug", "team", "created_at")
    list_filter = ("team",)
    search_fields = ("name", "slug")
    inlines = (EnvironmentInline,)


@admin.register(System)
class SystemAdmin(ModelAdmin):
    list_display = ("name", "project", "multiple_runtimes", "number_of_runtimes", "failover", "failover_applied")
    list_filter = ("project", "failover")
    search_fields = ("name", "slug")
    readonly_fields = ("failover_applied",)


@admin.register(Connector)
class ConnectorAdmin(ModelAdmin):
    list_display = ("name", "system", "project", "failover")
    list_filter = ("project", "failover")
    search_fields = ("name",)
    list_select_related = ("system", "project")


class PlacementInline(TabularInline):
    model = Placement
    extra = 0


@admin.register(DesignedMachine)
class DesignedMachineAdmin(ModelAdmin):
    list_display = ("name", "kind", "project", "router")
    list_filter = ("project", "kind")
    search_fields = ("name",)
    readonly_fields = ("router",)
    inlines = (PlacementInline,)


@admin.register(Group)
class GroupAdmin(ModelAdmin):
    list_display = ("name", "connector", "key")
    list_filter = ("connector__project",)
    search_fields = ("name", "key")
    readonly_fields = ("key",)
    list_select_related = ("connector",)


@admin.register(Flow)
class FlowAdmin(ModelAdmin):
    list_display = ("name", "connector", "group", "inbound_kind", "outbound_kind", "updated_at")
    list_filter = ("connector__project", "inbound_kind", "outbound_kind")
    search_fields = ("name", "key")
    readonly_fields = ("key", "updated_at")
    list_select_related = ("connector", "group")


@admin.register(FlowVersion)
class FlowVersionAdmin(ReadOnly):
    list_display = ("flow", "number", "description", "created_at", "created_by")
    list_filter = ("flow__connector__project",)
    search_fields = ("flow__name", "description")
    list_select_related = ("flow", "created_by")


@admin.register(Heartbeat)
class HeartbeatAdmin(ReadOnly):
    list_display = ("name", "at")
