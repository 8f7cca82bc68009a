"""The room server as an ASGI app."""
