"""Any interleaving of writes, subscribers and faults, against a plain model, over real connections.

    $ python -m tests.chaos.interleavings --store sqlite --examples 500
    500 interleavings of 41,230 steps, 612 kills: every client had the text of the model

A real server process, one writer, and clients of every kind: a WebSocket with and without
``synap.v1``, many rooms with ``synap.v2``, an event stream, and ``subscribe`` of the SDK.
Hypothesis chooses the steps, and shrinks those that fail. ``tests/chaos/test_interleavings.py``
runs a few.
"""
