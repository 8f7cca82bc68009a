"""The wire contract, shared by both wings: pure data, no I/O, no clock. See ``PROTOCOL.md``."""
