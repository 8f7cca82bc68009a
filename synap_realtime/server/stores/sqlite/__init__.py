"""The store that keeps its log in a SQLite file."""
