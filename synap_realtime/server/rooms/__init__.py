"""Rooms: fan-out, subscriptions, sessions and presence."""
