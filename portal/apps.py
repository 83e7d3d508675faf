from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class PortalConfig(AppConfig):
    name = "portal"
    verbose_name = "Teams, projects and design"


class BatonAdminConfig(admin_apps.AdminConfig):
    """django.contrib.admin with Baton's own site: Properties first."""

    default = False  # this module's own app is PortalConfig
    default_site = "portal.admin_site.BatonAdminSite"
