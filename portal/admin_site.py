"""The admin site: a support desk. Properties come first; history can be read, not changed."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

if TYPE_CHECKING:  # generic for the type checker only
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Model]
    ModelForm = forms.ModelForm[Any]
else:
    ModelAdmin, TabularInline, ModelForm = admin.ModelAdmin, admin.TabularInline, forms.ModelForm

FIRST = ("portal", "runtimes", "deployments")  # then the rest by name
FIRST_MODELS = ("Property", "Project", "Team")


class BatonAdminSite(admin.AdminSite):
    site_header = "Baton support desk, times in UTC"
    site_title = "Baton"
    index_title = "Support desk"
    site_url = "/"

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Baton's own apps first, and Properties first of all."""
        apps = super().get_app_list(request, app_label)
        for app in apps:
            app["models"].sort(key=lambda model: (_place(model["object_name"], FIRST_MODELS), model["name"]))
        apps.sort(key=lambda app: (_place(app["app_label"], FIRST), app["name"]))
        return apps


def _place(name: str, first: tuple[str, ...]) -> int:
    return first.index(name) if name in first else len(first)


class ReadOnly(ModelAdmin):
    """Facts and history: what machines and the engine wrote is looked at, never edited."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
