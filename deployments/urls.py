"""Addresses of the pages of deployments, by area."""

from django.urls import URLPattern, path

from deployments.views import (
    architecture,
    comparison,
    dashboard,
    deployments,
    machines,
    plans,
    project_files,
    properties,
    property_grid,
    releases,
    retention,
    routers,
    rules,
    schedules,
    search,
)

_environment = "projects/<slug:slug>/<slug:kind>/"
_machine = _environment + "machines/<slug:name>/"

urlpatterns: list[URLPattern] = [
    # Dashboard
    path("", dashboard.dashboard, name="dashboard"),
    path("projects/<slug:slug>/search/", search.search, name="search"),
    # A project as a file
    path("projects/<slug:slug>/export/", project_files.project_export, name="project-export"),
    path("projects/<slug:slug>/import/", project_files.project_import, name="project-import"),
    # Deploy › Architecture
    path(_environment + "architecture/", architecture.architecture, name="architecture"),
    path(_environment + "architecture/apply/", architecture.apply_architecture, name="architecture-apply"),
    # Machines
    path(_machine, machines.machine, name="machine"),
    path(_machine + "register/", machines.register_machine, name="machine-register"),
    path(_machine + "contact/", machines.machine_contact, name="machine-contact"),
    path(_machine + "restart/", machines.restart_runtimes, name="machine-restart"),
    path(_environment + "architecture/router-change/", routers.router_change, name="router-change"),
    path(_environment + "architecture/authority/", routers.certificate_authority, name="authority"),
    path(_machine + "rebuild-router/", routers.rebuild_router, name="router-rebuild"),
    path(_machine + "rebuild-cluster/", routers.rebuild_cluster, name="cluster-rebuild"),
    path(_machine + "runtimes/<slug:connector>/preference/", machines.runtime_preference, name="runtime-preference"),
    path(_machine + "runtimes/<slug:connector>/flows/<slug:flow>/<slug:act>/", machines.flow_act, name="flow-act"),
    path(_machine + "runtimes/<slug:connector>/<slug:act>/", machines.runtime_act, name="runtime-act"),
    # Deploy › Properties
    path(_environment + "properties/", properties.property_list, name="properties"),
    path(_environment + "properties.csv", properties.properties_csv, name="properties-csv"),
    path(_environment + "properties/edit/", properties.property_edit, name="property-edit"),
    path(_environment + "properties/row/", properties.property_row, name="property-row"),
    path(_environment + "properties/<int:pk>/delete/", properties.property_delete, name="property-delete"),
    path(_environment + "properties/grid/", property_grid.grid_page, name="property-grid"),
    path(_environment + "properties/cell/", property_grid.cell, name="property-cell"),
    path(_environment + "properties/bulk/", property_grid.bulk, name="property-bulk"),
    path(_environment + "properties/paste/", property_grid.paste, name="property-paste"),
    path(_environment + "properties/key/", property_grid.key_page, name="property-key"),
    path(_environment + "properties/type/", property_grid.declare_type, name="property-type"),
    path(_environment + "properties/history/", property_grid.history, name="property-history"),
    path(_environment + "properties/fill/", property_grid.fill, name="property-fill"),
    path(_environment + "one-host/", property_grid.one_host, name="one-host"),
    path(_machine + "reach/", machines.machine_reach, name="machine-reach"),
    path(_machine + "suggestion/", property_grid.accept_suggestion, name="machine-suggestion"),
    path(_environment + "properties/undo/", property_grid.undo, name="property-undo"),
    # Deploy › Plan
    path(_environment + "plan/", plans.plan_page, name="plan"),
    path(_environment + "plan/default/", plans.plan_default, name="plan-default"),
    path(_environment + "plan/copy/", plans.plan_copy, name="plan-copy"),
    path(_environment + "plan/steps/new/", plans.step_new, name="step-new"),
    path(_environment + "plan/steps/<int:pk>/", plans.step_edit, name="step-edit"),
    path(_environment + "plan/steps/<int:pk>/move/", plans.step_move, name="step-move"),
    path(_environment + "plan/steps/<int:pk>/remove/", plans.step_remove, name="step-remove"),
    # Deploy › Releases
    path("projects/<slug:slug>/releases/<int:number>/", releases.release_page, name="release"),
    path(_environment + "releases/", releases.release_list, name="releases"),
    path(_environment + "releases/new/", releases.release_new, name="release-new"),
    path(_environment + "releases/compare/", comparison.release_compare, name="release-compare"),
    path(_environment + "releases/<int:number>/activate/", releases.release_activate, name="release-activate"),
    path(_environment + "releases/<int:number>/deploy/", releases.release_deploy, name="release-deploy"),
    path(_environment + "releases/retention/", retention.release_retention, name="release-retention"),
    path(_environment + "releases/rollback/", schedules.release_rollback, name="release-rollback"),
    path(_environment + "releases/<int:number>/approval/", rules.approval_request, name="approval-request"),
    path(_environment + "approvals/<int:pk>/<slug:act>/", rules.approval_act, name="approval-act"),
    # Deploy › Releases › Schedule
    path(_environment + "schedule/", schedules.schedule_page, name="schedule"),
    path(_environment + "activations/<int:pk>/reschedule/", schedules.activation_reschedule, name="activation-reschedule"),
    path(_environment + "activations/<int:pk>/<slug:act>/", schedules.activation_act, name="activation-act"),
    # Deploy › Rules
    path(_environment + "rules/", rules.environment_rules, name="environment-rules"),
    path(_environment + "rules/move/", rules.environment_move, name="environment-move"),
    path(_environment + "rules/freezes/new/", rules.freeze_new, name="freeze-new"),
    path(_environment + "rules/freezes/<int:pk>/lift/", rules.freeze_lift, name="freeze-lift"),
    # Deploy › Deployments
    path(_environment + "deployments/", deployments.deployment_list, name="deployments"),
    path(_environment + "deployments/<int:pk>/", deployments.deployment_page, name="deployment"),
    path(_environment + "deployments/<int:pk>/log/", deployments.deployment_log, name="deployment-log"),
    path(_environment + "deployments/<int:pk>/cancel/", deployments.deployment_cancel, name="deployment-cancel"),
    path(_environment + "deployments/<int:pk>/log/file/", deployments.deployment_log_file, name="deployment-log-file"),
    path(_environment + "deployments/<int:pk>/decide/", deployments.deployment_decide, name="deployment-decide"),
    path(_environment + "deployments/<int:pk>/steps/<int:number>/confirm/", deployments.step_confirm, name="step-confirm"),
]
