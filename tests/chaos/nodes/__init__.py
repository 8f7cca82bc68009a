"""Real nodes on Valkey with Sentinel, while something fails; see ``scripts/chaos --help``."""
