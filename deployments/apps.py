from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    name = "deployments"
    verbose_name = "Releases, plans and deployments"

    def ready(self) -> None:
        """News travels up without an import (docs/architecture.md, layer rule 5)."""
        from deployments import rollout, tasks
        from runtimes import fleet

        fleet.on_report.append(rollout.wake)
        rollout.send = tasks.send_step
