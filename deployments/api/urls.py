"""The part of /api/v1/ that deployments owns."""

from django.urls import URLPattern, URLResolver, path
from rest_framework.routers import SimpleRouter

from deployments.api.activations import ActivationViewSet
from deployments.api.deployments import DeploymentViewSet
from deployments.api.plans import DefaultPlan, FollowersFirstPlan, PlanCopy, PlanStep, PlanSteps, PlanView
from deployments.api.projects import ProjectExport, ProjectImport
from deployments.api.releases import ReleaseViewSet
from deployments.api.retention import RetentionView
from deployments.api.rules import ApprovalRequestViewSet, FreezesView, FreezeView, OrderView, RulesView

router = SimpleRouter()
router.register("releases", ReleaseViewSet, basename="api-release")
router.register("deployments", DeploymentViewSet, basename="api-deployment")
router.register("activations", ActivationViewSet, basename="api-activation")
router.register("approvals", ApprovalRequestViewSet, basename="api-approval")
_environment = "projects/<slug:slug>/environments/<slug:kind>/"
urlpatterns: list[URLPattern | URLResolver] = [
    path("projects/<slug:slug>/export/", ProjectExport.as_view(), name="api-project-export"),
    path("projects/<slug:slug>/import/", ProjectImport.as_view(), name="api-project-import"),
    *router.urls,
    path("projects/<slug:slug>/retention/", RetentionView.as_view(), name="api-retention"),
    path(_environment + "plan/", PlanView.as_view(), name="api-plan"),
    path(_environment + "plan/steps/", PlanSteps.as_view(), name="api-plan-steps"),
    path(_environment + "plan/steps/<int:pk>/", PlanStep.as_view(), name="api-plan-step"),
    path(_environment + "plan/default/", DefaultPlan.as_view(), name="api-plan-default"),
    path(_environment + "plan/followers-first/", FollowersFirstPlan.as_view(), name="api-plan-followers-first"),
    path(_environment + "plan/copy/", PlanCopy.as_view(), name="api-plan-copy"),
    path(_environment + "rules/", RulesView.as_view(), name="api-rules"),
    path(_environment + "order/", OrderView.as_view(), name="api-order"),
    path(_environment + "freezes/", FreezesView.as_view(), name="api-freezes"),
    path(_environment + "freezes/<int:pk>/", FreezeView.as_view(), name="api-freeze"),
]
