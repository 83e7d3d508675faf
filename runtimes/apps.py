from django.apps import AppConfig


class RuntimesConfig(AppConfig):
    name = "runtimes"
    verbose_name = "Machines, runtimes and groups"

    def ready(self) -> None:
        """/readyz asks every app, and a report takes a change of members on (docs/architecture.md, layer rule 5)."""
        from portal import readiness
        from runtimes import fleet, membership
        from runtimes.readiness import groups_have_leaders

        readiness.checks["failover groups"] = groups_have_leaders
        fleet.on_report.append(membership.wake)
