"""Crashes, broken links and misbehaving clients. Each test is bounded in time.

``scripts/test tests/chaos --rounds 200`` runs for about ten minutes.
"""
