"""The configuration: settings, references to application code, and watched files."""
