"""The documentation site: ``scripts/docs`` builds it into ``site/``."""
