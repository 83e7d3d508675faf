from django.db import migrations


def a_day(apps, schema_editor):
    """Manual steps had no effective limit so far: those that bear the common one of 120 s wait a day, those that wait now for ever."""
    usual = {"kind": "manual", "timeout_seconds": 120}
    apps.get_model("deployments", "Step").objects.filter(**usual).update(timeout_seconds=24 * 3600)
    runs = apps.get_model("deployments", "StepRun").objects
    runs.filter(status="pending", **usual).update(timeout_seconds=24 * 3600)
    runs.filter(kind="manual", status="waiting").update(deadline_at=None)


class Migration(migrations.Migration):
    dependencies = [("deployments", "0007_retention")]

    operations = [migrations.RunPython(a_day, migrations.RunPython.noop)]
