"""The store that keeps the logs in a SQLite file."""
