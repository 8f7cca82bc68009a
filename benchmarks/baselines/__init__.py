"""The baselines: small programs, each as its own documentation recommends.

All take a port and implement the same interface: WebSockets at ``/rooms/{room}/subscribe``. ``POST
/rooms/{room}/broadcast`` forwards the body to the room, ``POST /broadcast`` does so for each of
``{"notifications": [{"rooms": ["user_1"], …}, …]}``. None validates, deduplicates, keeps a log or
authenticates.
"""
