from django.db import migrations


def sweep(apps, schema_editor):
    """What was readable before it was sealed still stands in free pages and in the write-ahead log: SQLite writes the file anew.
    PostgreSQL: `VACUUM FULL portal_property, runtimes_bundle` (docs/operating.md), which needs a moment without readers."""
    if schema_editor.connection.vendor == "sqlite":
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Migration(migrations.Migration):

    atomic = False

    dependencies = [
        ('portal', '0002_types_secrets_and_history'),
        ('runtimes', '0007_bundles_are_sealed'),
    ]

    operations = [migrations.RunPython(sweep, migrations.RunPython.noop)]
