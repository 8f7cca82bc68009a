"""Memory and event-loop time that clients share."""
