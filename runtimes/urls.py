"""Addresses of the pages of runtimes."""

from django.urls import URLPattern

urlpatterns: list[URLPattern] = []
