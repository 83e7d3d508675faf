import ipaddress
from collections import defaultdict

from django.db import migrations


def mark(apps, schema_editor):
    """Environments whose machines have loopback addresses, or share one, were meant so: from now on that takes a mark."""
    Property = apps.get_model("portal", "Property")
    Environment = apps.get_model("portal", "Environment")
    found = defaultdict(list)
    for environment, value in Property.objects.filter(key__endswith=".failover.internal-ip").values_list("environment_id", "value"):
        found[environment].append(value.lower())
    for environment, addresses in found.items():
        if len(set(addresses)) < len(addresses) or any(is_loopback(address) for address in addresses):
            Environment.objects.filter(pk=environment).update(one_host=True)


def is_loopback(address):
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.rstrip(".") == "localhost"


class Migration(migrations.Migration):

    dependencies = [
        ('portal', '0004_kinds_are_named_by_the_registry'),
    ]

    operations = [migrations.RunPython(mark, migrations.RunPython.noop)]
