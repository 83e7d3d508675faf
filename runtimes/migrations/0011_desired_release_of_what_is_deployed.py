"""What is deployed now is of the release that its bundle was made from."""

from django.db import migrations
from django.db.models import OuterRef, Subquery


def fill(apps, schema_editor):
    Runtime, Bundle = apps.get_model("runtimes", "Runtime"), apps.get_model("runtimes", "Bundle")
    number = Bundle.objects.filter(pk=OuterRef("desired_bundle_id")).values("release_number")[:1]
    Runtime.objects.filter(desired_bundle__isnull=False).update(desired_release=Subquery(number))


class Migration(migrations.Migration):
    dependencies = [("runtimes", "0010_desired_release")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
