"""Lines that were logged before get their deployment and number; Balance failover of a run that is under way stands in a stage of its own."""

from django.db import migrations
from django.db.models import F, OuterRef, Subquery


def number_lines(apps, schema_editor):
    Deployment, StepLog, StepRun = (apps.get_model("deployments", name) for name in ("Deployment", "StepLog", "StepRun"))
    StepLog.objects.update(deployment_id=Subquery(StepRun.objects.filter(pk=OuterRef("step_id")).values("deployment_id")[:1]))
    for deployment in Deployment.objects.all().iterator():
        lines = list(StepLog.objects.filter(deployment=deployment).order_by("id").only("pk"))
        for number, line in enumerate(lines, start=1):
            line.number = number
        StepLog.objects.bulk_update(lines, ["number"], batch_size=200)
        Deployment.objects.filter(pk=deployment.pk).update(log_lines=len(lines))
    StepRun.objects.filter(kind="balance-failover").update(stage_number=F("stage_number") + 1)


class Migration(migrations.Migration):
    dependencies = [("deployments", "0003_stages_decisions_and_log")]
    operations = [migrations.RunPython(number_lines, migrations.RunPython.noop)]
