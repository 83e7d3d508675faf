"""Addresses of the pages of deployments."""

from django.urls import URLPattern

urlpatterns: list[URLPattern] = []
