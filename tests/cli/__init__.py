"""The command ``synap-realtime``, as users run it."""
