"""The peers: small programs, each as its own documentation shows it.

All take a port, and all do the same: WebSockets at ``/rooms/{room}/subscribe``, ``POST
/rooms/{room}/broadcast`` hands the body through to the room, ``POST /broadcast`` does so for each
of ``{"notifications": [{"rooms": ["user_1"], …}, …]}``. None validates, dedupes, keeps a log or
asks for a key.
"""
