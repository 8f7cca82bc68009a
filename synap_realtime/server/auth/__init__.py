"""Authenticate clients by keys and tokens, and decide what they may do.

See PROTOCOL.md, "Authentication and authorization".
"""
