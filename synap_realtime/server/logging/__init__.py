"""The log of the server: its format, its records, and internal errors."""
