"""Adapters, one job framework per module. Each only translates the framework's events."""
