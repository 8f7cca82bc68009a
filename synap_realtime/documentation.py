"""The pages of the documentation that messages link to: the only module with their address."""

from __future__ import annotations

from enum import StrEnum

SITE = "https://synap-realtime.github.io/synap-realtime/"
"""The address of the site: ``Documentation`` of pyproject.toml, ``site_url`` of zensical.toml."""


class Topic(StrEnum):
    """A page of the site, relative to :data:`SITE`, with the anchor of a heading."""

    CLOCKS = "architecture/troubleshooting.html#the-credential-is-rejected"
    CLOSE_CODES = "reference/errors.html#close-codes"
    CREDENTIALS = "reference/errors.html#credentials"
    DEMO = "projects.html#the-demo"
    INSTALLATION = "index.html#install"
    KEYS = "server.html#keys-and-tokens"
    LIMITS = "reference/options.html#limits"
    NO_CONNECTION = "architecture/troubleshooting.html#the-page-does-not-connect"
    NO_PUBLISH = "architecture/troubleshooting.html#the-job-publishes-nothing"
    NOT_READY = "architecture/troubleshooting.html#the-server-is-up-and-ready-answers-503"
    NO_START = "architecture/troubleshooting.html#the-server-does-not-start"
    OPTIONS = "reference/options.html"
    PERMISSIONS = "reference/errors.html#permissions"
    PROJECTS = "projects.html#a-project-to-start-from"
    SCALE_OUT = "scale-out.html"
    STORES = "server.html#stores"
    TROUBLESHOOTING = "architecture/troubleshooting.html"

    @property
    def url(self) -> str:
        return f"{SITE}{self.value}"


def see(topic: Topic) -> str:
    """Return the end of a message: the page that explains it."""
    return f"; see {topic.url}"
