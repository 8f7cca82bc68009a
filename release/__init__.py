"""What a release consists of: built by ``scripts/build``, checked by ``scripts/release``."""
