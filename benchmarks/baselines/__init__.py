"""The baselines: small programs, each as its own documentation recommends.

All take a port and implement the same interface: WebSockets at ``/rooms/{room}/subscribe``, and
``POST /broadcast`` as the SDK sends it: each of ``{"notifications": [{…, "rooms": ["user_1"]}]}``
is sent to its rooms. None validates, deduplicates, keeps a log or authenticates. nchan and the
lower bound forward the body of ``POST /rooms/{room}/broadcast`` to the room.
"""
