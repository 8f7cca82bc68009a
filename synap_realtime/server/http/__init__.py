"""The HTTP API: the routes and publishing."""
