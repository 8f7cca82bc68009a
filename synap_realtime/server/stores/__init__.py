"""Where rooms keep their notifications. ``base.py`` is the contract."""
