"""The objects that the chart in ``deploy/helm`` makes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from .conftest import DEPLOY
from .go_tools import run_go_tool

CHART = DEPLOY / "helm/synap-realtime"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = "1.34.0"  # a helm that Go has built assumes 1.20 otherwise


def template(*options: str | Path) -> tuple[str, str]:
    """Return what ``helm template`` prints, and its errors."""
    done = run_go_tool(
        "helm", "template", "rooms", CHART, "--kube-version", KUBERNETES, *map(str, options)
    )
    return done.stdout, done.stderr


class Release:
    """The objects of a release, by kind and name.

    Args:
        values: a file of ``ci/``.
    """

    def __init__(self, values: str, *options: str) -> None:
        text, errors = template("--values", CHART / "ci" / f"{values}-values.yaml", *options)
        assert text, errors
        self.text = text
        self.objects = [each for each in yaml.safe_load_all(text) if each is not None]

    def get(self, kind: str, name: str = "rooms-synap-realtime") -> dict[str, Any]:
        (found,) = (
            each
            for each in self.objects
            if (each["kind"], each["metadata"]["name"]) == (kind, name)
        )
        return dict(found)

    def kinds(self) -> set[str]:
        return {each["kind"] for each in self.objects}

    def pod(self, kind: str, name: str = "rooms-synap-realtime") -> dict[str, Any]:
        return dict(self.get(kind, name)["spec"]["template"]["spec"])

    def node(self) -> dict[str, Any]:
        (container,) = self.pod("Deployment")["containers"]
        return dict(container)


@functools.cache
def release(values: str, *options: str) -> Release:
    return Release(values, *options)


def environment(
    container: dict[str, Any], secrets: dict[str, str], pod: str = ""
) -> dict[str, str]:
    """Return the variables of a container, with references expanded as the kubelet does.

    Args:
        secrets: the values of Secrets, by ``name/key``.
        pod: the name of the pod.
    """
    found: dict[str, str] = {}
    for each in container["env"]:
        value = each.get("value")
        if value is None:
            source = each["valueFrom"]
            if "secretKeyRef" in source:
                value = secrets["{name}/{key}".format(**source["secretKeyRef"])]
            else:
                assert source["fieldRef"]["fieldPath"] == "metadata.name"
                value = pod
        for name, known in found.items():
            value = value.replace(f"$({name})", known)
        found[each["name"]] = value
    return found
