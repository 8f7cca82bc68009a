"""Fuzz targets for everything that parses untrusted input. ``scripts/fuzz --help``.

A target (:mod:`.targets`) takes one input and raises when a rule is broken. Two drivers feed it:
atheris, which is guided by coverage, where its wheel exists, and :mod:`.mutation` everywhere else.
``corpus/<target>/`` holds the seeds, and each input that once broke a rule; ``covered/`` holds what
explorations found to cover more.
"""
