#!/usr/bin/env python
"""Django's command line for Baton; `manage.py runstack` is what `make run` starts."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:  # one sentence that names the setting; where in the code it was read helps nobody
        sys.exit(f"{error}")
