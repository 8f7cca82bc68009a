"""The checks: one module for each subject, with its list ``CHECKS``."""
