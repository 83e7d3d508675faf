from django.apps import AppConfig


class RuntimesConfig(AppConfig):
    name = "runtimes"
    verbose_name = "Machines, runtimes and groups"

    def ready(self) -> None:
        """/readyz asks every app (docs/architecture.md, layer rule 5)."""
        from portal import readiness
        from runtimes.readiness import groups_have_leaders

        readiness.checks["failover groups"] = groups_have_leaders
