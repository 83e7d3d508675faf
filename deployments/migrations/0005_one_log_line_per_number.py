import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deployments", "0004_number_what_was_logged")]
    operations = [
        migrations.AlterField(
            model_name="steplog",
            name="deployment",
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="log", to="deployments.deployment"),
        ),
        migrations.AlterField(model_name="steplog", name="number", field=models.PositiveIntegerField()),
        migrations.AddConstraint(
            model_name="steplog",
            constraint=models.UniqueConstraint(fields=("deployment", "number"), name="one_log_line_per_number"),
        ),
    ]
