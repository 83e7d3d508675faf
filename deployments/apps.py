from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    name = "deployments"
    verbose_name = "Releases, plans and deployments"

    def ready(self) -> None:
        """News travels up without an import (docs/architecture.md, layer rule 5)."""
        from deployments import demonstration, frozen, rollout, steps, tasks
        from portal import properties, readiness
        from runtimes import alarms, architecture, failback, fleet, membership, reports

        fleet.on_report.insert(0, rollout.wake)  # a step waits for it
        architecture.guards.append(rollout.refuse_while_deploying)
        membership.guards.append(rollout.refuse_while_deploying)
        failback.blockers.append(rollout.running_on)
        alarms.silencers.append(rollout.quiet_on)
        reports.bringing.append(rollout.bringing)
        properties.on_secret.append(frozen.hide)
        rollout.send = tasks.send_step
        steps.probe = tasks.send_probe
        readiness.checks["first deployment"] = demonstration.first_deployment_ended_well
