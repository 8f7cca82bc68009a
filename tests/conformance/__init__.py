"""PROTOCOL.md as cases: what any room server has to do, seen over the wire alone.

One file for each heading, one case for each rule. The suite speaks HTTP, WebSocket and bare
sockets to an address, uses fresh rooms, assumes the defaults of PROTOCOL.md, and takes cursors as
they come.
``scripts/conformance`` runs it against any server; ``conftest.py`` starts ours. Where a server is
known to differ, ``differences.toml`` says so.

A server with keys meets all cases that one without keys meets: ``client.py`` shows with each
request the credential that opens its route, and ``client.showing(token)`` another one. Cases marked
``with_keys`` are about credentials. ``tokens.json`` has tokens for tests beside the wire, with a
clock that stands still: ``vectors.py`` says what each of them shows.

What cannot be seen over the wire, or only by waiting for hours, is tested on our own server:

- draining, ``synap.closing``, 4012, 503 with ``Retry-After``: ``tests/server``
- a 200 survives the server's sudden death; a store that cannot keep a batch: ``tests/faults``
- ids are forgotten after 5 minutes, notifications after 24 h or 1 h: ``tests/server``
- 4008 because nothing was taken for 20 s: ``tests/server``
- peers that are not on loopback, limits of an address, of a room and in all: ``tests/server``
- tokens of a JWK set, an ``iss`` or ``aud`` that is asked for: ``tokens.json``, ``tests/server``
- devices that are forgotten after 30 days, revocations after 24 h: ``tests/server``
- what a client does, "Clients": the tests of each client
"""
