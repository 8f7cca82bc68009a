"""The HTTP API: its routes, and publishing."""
