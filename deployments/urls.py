"""Addresses of the pages of deployments, by area."""

from django.urls import URLPattern, path

from deployments.views import architecture, dashboard, machines

_environment = "projects/<slug:slug>/<slug:kind>/"
_machine = _environment + "machines/<slug:name>/"

urlpatterns: list[URLPattern] = [
    # Dashboard
    path("", dashboard.dashboard, name="dashboard"),
    # Deploy › Architecture
    path(_environment + "architecture/", architecture.architecture, name="architecture"),
    path(_environment + "architecture/apply/", architecture.apply_architecture, name="architecture-apply"),
    # Machines
    path(_machine, machines.machine, name="machine"),
    path(_machine + "register/", machines.register_machine, name="machine-register"),
    path(_machine + "contact/", machines.machine_contact, name="machine-contact"),
    path(_machine + "restart/", machines.restart_runtimes, name="machine-restart"),
    path(_machine + "runtimes/<slug:connector>/preference/", machines.runtime_preference, name="runtime-preference"),
    path(_machine + "runtimes/<slug:connector>/flows/<slug:flow>/<slug:act>/", machines.flow_act, name="flow-act"),
    path(_machine + "runtimes/<slug:connector>/<slug:act>/", machines.runtime_act, name="runtime-act"),
]
