from django.db import migrations

from deployments.frozen import digest_of, hidden


def hide(apps, schema_editor):
    """What was frozen or told in a history while it was readable, of keys that are secrets by now."""
    Property, PropertyType, PropertyChange = (apps.get_model("portal", name) for name in ("Property", "PropertyType", "PropertyChange"))
    FrozenValues, ApprovalRequest = (apps.get_model("deployments", name) for name in ("FrozenValues", "ApprovalRequest"))
    for environment in apps.get_model("portal", "Environment").objects.all():
        keys = set(Property.objects.filter(environment=environment, secret=True).values_list("key", flat=True))
        keys |= set(PropertyType.objects.filter(project=environment.project_id, kind="secret").values_list("key", flat=True))
        for key in sorted(keys):
            former = PropertyChange.objects.filter(environment=environment, key=key)
            former.filter(before__isnull=False).update(before="", secret_before=True)
            former.filter(after__isnull=False).update(after="", secret_after=True)
        kept = FrozenValues.objects.filter(deployment__environment=environment) if keys else FrozenValues.objects.none()
        for pk in list(kept.values_list("pk", flat=True)):
            row = FrozenValues.objects.get(pk=pk)
            if (entries := hidden(row.values, keys)) != row.values:
                FrozenValues.objects.filter(pk=pk).update(values=entries, digest=digest_of(entries))
        asked = ApprovalRequest.objects.filter(environment=environment) if keys else ApprovalRequest.objects.none()
        for pk in list(asked.values_list("pk", flat=True)):
            row = ApprovalRequest.objects.get(pk=pk)
            if (entries := hidden(row.values, keys)) != row.values:
                ApprovalRequest.objects.filter(pk=pk).update(values=entries, values_digest=digest_of(entries))


class Migration(migrations.Migration):

    dependencies = [
        ("deployments", "0012_leaving_out_by_schedule"),
        ("portal", "0005_one_host_where_it_is_so"),
    ]

    operations = [migrations.RunPython(hide, migrations.RunPython.noop)]
