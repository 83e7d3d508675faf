from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    name = "deployments"
    verbose_name = "Releases, plans and deployments"

    def ready(self) -> None:
        """News travels up without an import (docs/architecture.md, layer rule 5)."""
        from deployments import demonstration, rollout, tasks
        from portal import readiness
        from runtimes import fleet

        fleet.on_report.append(rollout.wake)
        rollout.send = tasks.send_step
        readiness.checks["first deployment"] = demonstration.first_deployment_ended_well
