"""Adapters: one job framework a module. Each only translates."""
