"""The demo with adapters for real services: databases, object storages, models."""
