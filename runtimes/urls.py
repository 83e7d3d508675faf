"""Addresses of the pages of runtimes."""

from django.urls import URLPattern, path

from runtimes.views import groups, history, items, timeline

_environment = "projects/<slug:slug>/<slug:kind>/"

urlpatterns: list[URLPattern] = [
    # Operate
    path(_environment + "groups/", groups.groups, name="groups"),
    path(_environment + "groups/<uuid:pk>/return/<slug:act>/", groups.group_return, name="group-return"),
    path(_environment + "groups/<uuid:pk>/<slug:machine>/<slug:act>/", groups.group_act, name="group-act"),
    path(_environment + "groups/<uuid:pk>/failback/", groups.group_failback, name="group-failback"),
    path(_environment + "groups/<uuid:pk>/isolation/", groups.isolation, name="group-isolation"),
    path(_environment + "timing-profile/", groups.timing_profile, name="timing-profile"),
    path(_environment + "items/", items.items, name="items"),
    path(_environment + "items/<slug:machine>/<slug:connector>/<slug:flow>/", items.failed, name="items-failed"),
    path(_environment + "items/<slug:machine>/<slug:connector>/<slug:flow>/act/", items.act, name="items-act"),
    path(_environment + "groups/<uuid:pk>/history/", history.group_history, name="group-history"),
    path(_environment + "timeline/", timeline.timeline, name="timeline"),
]
