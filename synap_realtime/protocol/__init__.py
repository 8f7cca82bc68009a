"""The wire protocol, shared by server and clients: pure data, without I/O. See PROTOCOL.md."""
