"""PROTOCOL.md as test cases: the behaviour of any room server, observed over the wire alone.

One file for each heading, one case for each rule. The suite speaks HTTP, WebSocket and bare
sockets to an address, uses fresh rooms, assumes the defaults of PROTOCOL.md, and treats cursors as
opaque.
``scripts/conformance`` runs it against any server; ``conftest.py`` starts ours. Where a server is
known to differ, ``differences.toml`` says so.

All cases run against servers with keys, too: ``client.py`` sends with each request the credential
that its route requires, and ``client.showing(token)`` sends another one. Cases marked ``with_keys``
are about credentials. ``tokens.json`` has tokens with a fixed clock for unit tests of any
implementation; ``vectors.py`` describes each of them.

Rules that the wire does not show, or only after hours, are tested on our own server:

- draining, ``synap.closing``, 4012, 503 with ``Retry-After``: ``tests/server``
- acknowledged publishes survive ``kill -9``; a store that cannot keep a batch: ``tests/chaos``
- ids expire after 5 minutes, notifications after 24 h or 1 h: ``tests/server``
- 4008 for a peer that reads nothing for 20 s: ``tests/server``
- remote peers; limits for an address, for a room and in total: ``tests/server``
- tokens of a JWK set, a required ``iss`` or ``aud``: ``tokens.json``, ``tests/server``
- devices expire after 30 days, revocations after 24 h: ``tests/server``
- the duties of a client, "Clients": the tests of each client
"""
