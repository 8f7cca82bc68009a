"""``deploy/helm``: Helm and the schemas of Kubernetes accept it, and it fits the server."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.samples import Sample

from synap_realtime import __version__
from synap_realtime.server.config import ServerSettings, load_settings
from synap_realtime.server.serve import LINGER_S
from synap_realtime.server.stores.redis.address import Peer, parse_address

from .chart import CHART, KUBERNETES, VALUES, environment, release, template
from .conftest import DEPLOY
from .go_tools import prometheus_operator, run_go_tool

NAMES = [each.name.removesuffix("-values.yaml") for each in VALUES]
SECRETS = {
    "rooms-synap-realtime-valkey/password": "p" * 40,
    "valkey-password/secret": "q" * 40,
    "managed-valkey/connection": "rediss://managed.example.com",
    "rooms-synap-realtime-store/url": "valkeys://valkey.example.com",
}
OWN_VALUES = {
    "allowed_origins", "api_keys", "drain_timeout_s", "host", "keys_file", "log_format", "port",
    "store", "tls_cert", "tls_key", "token_secrets", "trusted_proxies", "workers",
}  # fmt: skip
"""Options that the chart sets itself, or that make no sense in a pod."""


@pytest.fixture(scope="session")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Schemas as kubeconform looks for them: of Kubernetes, and of the Prometheus Operator."""
    folder = tmp_path_factory.mktemp("schemas")
    source = Path(kubernetes_validate.__file__).with_name("kubernetes-json-schema")
    for version in ("1.27.0", "1.37.0"):
        (folder / version).mkdir()
        strict = source / f"v{version}-local-strict"
        for file in (*strict.glob("*-*v[12].json"), strict / "_definitions.json"):
            text = file.read_text().replace("/api/_definitions", "_definitions")
            schema = json.loads(text)
            del schema["$id"]  # references would be looked up there
            (folder / version / file.name).write_text(json.dumps(schema))
        if (operator := prometheus_operator()) is not None:
            crd = operator / "example/prometheus-operator-crd"
            text = (crd / "monitoring.coreos.com_servicemonitors.yaml").read_text()
            (served,) = yaml.safe_load(text)["spec"]["versions"]
            schema = _strict(served["schema"]["openAPIV3Schema"])
            (folder / version / "servicemonitor-monitoring-v1.json").write_text(json.dumps(schema))
    return folder


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Reject unknown fields, as the API server would drop them."""
    for name, nested in schema.get("properties", {}).items():
        if name != "metadata":
            _strict(nested)
    if "items" in schema:
        _strict(schema["items"])
    if "properties" in schema and "metadata" not in schema["properties"]:
        schema["additionalProperties"] = False
    return schema


@pytest.mark.parametrize("values", VALUES, ids=NAMES)
def test_helm_lint_finds_nothing(values: Path) -> None:
    done = run_go_tool(
        "helm", "lint", "--strict", "--kube-version", KUBERNETES, "--values", values, CHART
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("kubernetes", ["1.27.0", "1.37.0"])
@pytest.mark.parametrize("name", NAMES)
def test_kubeconform_accepts_every_object(
    name: str, kubernetes: str, schemas: Path, tmp_path: Path
) -> None:
    rendered = release(name)
    file = tmp_path / "rendered.yaml"
    file.write_text(rendered.text)
    missing = prometheus_operator() is None
    done = run_go_tool(
        "kubeconform", "-strict", "-summary", "-output", "json", "-kubernetes-version", kubernetes,
        *(["-skip", "ServiceMonitor"] if missing else []), "-schema-location",
        f"{schemas}/{kubernetes}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", file,
    )  # fmt: skip
    summary = json.loads(done.stdout)["summary"]
    skipped = int(missing and "ServiceMonitor" in rendered.kinds())
    assert summary == {
        "valid": len(rendered.objects) - skipped, "invalid": 0, "errors": 0, "skipped": skipped,
    }, done.stdout  # fmt: skip


def test_kubeconform_rejects_a_wrong_field(schemas: Path, tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    for right, wrong in (("periodSeconds", "periodSecond"), ("interval:", "every:")):
        file.write_text(release("full").text.replace(right, wrong))
        done = run_go_tool(
            "kubeconform", "-strict", "-schema-location",
            f"{schemas}/1.37.0/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", file,
        )  # fmt: skip
        assert wrong.rstrip(":") in done.stdout


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("keys.existingSecret=", "keys: the server needs keys. Create them with: synap-realtime"),
        ("keys.toml=x", "keys: set either keys.existingSecret or keys.toml, not both"),
        ("replica=3", "additional properties 'replica' not allowed"),
        ("replicas=two", "at '/replicas': got string, want integer"),
        ("settings.retention=3", "invalid propertyName 'retention'"),
        ("valkey.replicas=2", "at '/valkey/replicas': value must be one of 3, 5, 7"),
        ("valkey.maxmemory=512Mi", "at '/valkey/maxmemory': '512Mi' does not match"),
        ("valkey.enabled=false", "store: without valkey.enabled, set store.url"),
        ("store.url=redis://x", "store: the nodes use the Valkey of this chart"),
        ("store.url=http://user:secret@x", "store.url: expected redis://"),
        ("store.existingSecret=x", "store: the nodes use the Valkey of this chart"),
        ("service.port=99999", "at '/service/port': maximum"),
        ("ingress.enabled=true", "ingress: set ingress.host"),
        ("allowedOrigins={*}", "at '/allowedOrigins/0': '*' does not match"),
        ("image.repository=", "at '/image/repository': '' does not match"),
        ("serviceMonitor.enabled=true", "serviceMonitor: set serviceMonitor.credentials.name"),
        ("autoscaling.enabled=true,autoscaling.maxReplicas=1", "minReplicas is greater"),
        (
            "autoscaling.enabled=true,autoscaling.connections=0,autoscaling.cpuPercent=0",
            "autoscaling: connections and cpuPercent are both 0",
        ),
    ],
)
def test_wrong_value_is_named(value: str, said: str) -> None:
    text, errors = template("--values", CHART / "ci/minimal-values.yaml", "--set", value)
    assert text == ""
    assert said in errors
    assert "secret@" not in errors


def test_settings_are_the_options_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    accepted = set(schema["properties"]["settings"]["propertyNames"]["enum"])
    options = {each.replace("_", "-") for each in set(ServerSettings.model_fields) - OWN_VALUES}
    assert accepted == options, "list the option in values.schema.json, or in OWN_VALUES"


@pytest.mark.parametrize("name", NAMES)
def test_environment_is_valid_for_the_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(release(name).node(), SECRETS)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    own = {each.removeprefix("SYNAP_REALTIME_").lower() for each in variables if "SYNAP" in each}
    assert own <= set(ServerSettings.model_fields)
    assert settings.host == "::"
    assert settings.port == release(name).node()["ports"][0]["containerPort"]
    assert parse_address(settings.store)


def test_settings_arrive_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment(release("full").node(), SECRETS).items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.max_memory_bytes == 536870912
    assert (settings.retention_s, settings.admin) == (3600.5, True)
    assert settings.allowed_origins == ("https://app.example.com", "https://admin.example.com:8443")
    assert settings.trusted_proxies == ("10.244.0.0/16", "fd00::/8")
    assert settings.drain_timeout_s == 30


def test_store_is_found_by_every_sentinel_of_the_chart() -> None:
    rendered = release("full")
    address = parse_address(environment(rendered.node(), SECRETS)["SYNAP_REALTIME_STORE"])
    name = "rooms-synap-realtime-valkey"
    assert address.peers == tuple(Peer(f"{name}-{n}.{name}-pods", 26379) for n in range(5))
    assert (address.service, address.password) == ("main", SECRETS["valkey-password/secret"])
    stateful = rendered.get("StatefulSet", name)["spec"]
    assert stateful["replicas"] == len(address.peers)
    assert stateful["serviceName"] == f"{name}-pods"
    service = rendered.get("Service", f"{name}-pods")["spec"]
    assert service["publishNotReadyAddresses"] is True
    assert {each["port"] for each in service["ports"]} == {6379, 26379}


def test_no_variable_of_a_service_becomes_an_option() -> None:
    """A Service named synap-realtime would set SYNAP_REALTIME_PORT=tcp://… in every pod."""
    for kind, name in (("Deployment", ""), ("StatefulSet", "-valkey")):
        assert (
            release("minimal").pod(kind, f"rooms-synap-realtime{name}")["enableServiceLinks"]
            is False
        )


@pytest.mark.parametrize("name", NAMES)
def test_grace_period_covers_the_drain(name: str) -> None:
    """The wait before SIGTERM, the drain, and what workers.py allows a process to exit."""
    pod, node = release(name).pod("Deployment"), release(name).node()
    drain_s = float(environment(node, SECRETS)["SYNAP_REALTIME_DRAIN_TIMEOUT_S"])
    (command, wait_s) = node["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    needed_s = int(wait_s) + 2 * drain_s + LINGER_S + 10
    assert needed_s < pod["terminationGracePeriodSeconds"] < needed_s + 10
    unready_s = node["readinessProbe"]["periodSeconds"] * node["readinessProbe"]["failureThreshold"]
    assert unready_s <= 5


def test_probes_ask_paths_of_the_server() -> None:
    node = release("minimal").node()
    paths = {
        probe: node[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", ""), ("StatefulSet", "-valkey")], ids=["nodes", "valkey"]
)
def test_pods_meet_the_restricted_pod_security_standard(kind: str, name: str) -> None:
    pod = release("minimal").pod(kind, f"rooms-synap-realtime{name}")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
    assert all(set(each) & {"secret", "emptyDir", "configMap"} for each in pod["volumes"])


def test_user_is_the_one_of_the_image() -> None:
    context = release("minimal").pod("Deployment")["securityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    assert f"\nUSER {user}\n" in (DEPLOY / "Containerfile").read_text()


def test_memory_limit_is_the_one_of_the_unit() -> None:
    """And so that of the alert SynapRealtimeMemoryHigh."""
    assert "\nMemoryMax=2G\n" in (DEPLOY / "synap-realtime.service").read_text()
    assert release("minimal").node()["resources"]["limits"]["memory"] == "2Gi"


def test_autoscaler_uses_an_exported_metric(samples: list[Sample]) -> None:
    scaler = release("full").get("HorizontalPodAutoscaler")["spec"]
    (pods, cpu) = scaler["metrics"]
    metric = pods["pods"]["metric"]["name"]
    assert metric in {sample.name for sample in samples}
    assert pods["pods"]["target"]["averageValue"] == "8000"
    assert cpu["resource"]["name"] == "cpu"
    assert "cpu" in release("full").node()["resources"]["requests"]
    assert scaler["scaleTargetRef"]["name"] == "rooms-synap-realtime"
    assert "replicas" not in release("full").get("Deployment")["spec"]
    assert metric in (CHART / "README.md").read_text()


def test_connections_of_the_autoscaler_fit_the_limit() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["autoscaling"]["connections"] < load_settings().max_connections


def test_service_monitor_selects_the_service_and_names_the_job() -> None:
    monitor = release("full").get("ServiceMonitor")["spec"]
    labels = release("full").get("Service")["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert labels[monitor["jobLabel"]] == job["job_name"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["path"] == job["metrics_path"]
    headless = release("full").get("Service", "rooms-synap-realtime-valkey-pods")
    assert not monitor["selector"]["matchLabels"].items() <= headless["metadata"]["labels"].items()


def test_ingress_neither_buffers_nor_logs_tokens() -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = release("full").get("Ingress")["metadata"]["annotations"]
    assert annotations[f"{prefix}proxy-buffering"] == "off"
    assert annotations[f"{prefix}enable-access-log"] == "false"
    assert int(annotations[f"{prefix}proxy-read-timeout"]) > load_settings().idle_timeout_s


def test_selectors_match_the_pods() -> None:
    rendered = release("full")
    for kind, suffix in (("Deployment", ""), ("StatefulSet", "-valkey")):
        name = f"rooms-synap-realtime{suffix}"
        labels = rendered.get(kind, name)["spec"]["template"]["metadata"]["labels"]
        for selector in (
            rendered.get(kind, name)["spec"]["selector"]["matchLabels"],
            rendered.get("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
            rendered.get("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"],
        ):
            assert selector.items() <= labels.items()
    node = rendered.get("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert rendered.get("Service")["spec"]["selector"].items() <= node.items()


def test_only_nodes_and_valkey_reach_the_sentinels() -> None:
    (rule,) = release("full").get("NetworkPolicy", "rooms-synap-realtime-valkey")["spec"]["ingress"]
    parts = {
        each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in rule["from"]
    }
    assert parts == {"node", "valkey"}
    assert {each["port"] for each in rule["ports"]} == {6379, 26379}


def test_password_is_only_in_secrets() -> None:
    for name, secret in (("store-url", "password"), ("full", "j" * 43)):
        for each in release(name).objects:
            assert each["kind"] == "Secret" or secret not in json.dumps(each)


def test_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


FREE = {"annotations", "resources", "sentinelResources"}


def _values(tree: dict[str, Any], path: str = "") -> set[str]:
    """The paths of all values, as the table of the README names them."""
    found: set[str] = set()
    for name, value in tree.items():
        inner = f"{path}{name}"
        if isinstance(value, dict) and value and name not in FREE:
            found |= _values(value, f"{inner}.")
        else:
            found.add(inner)
    return found


@functools.cache
def _documented() -> set[str]:
    rows = re.findall(r"^\| (`[^|]+`) \|", (CHART / "README.md").read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_readme_lists_every_value() -> None:
    assert _values(yaml.safe_load((CHART / "values.yaml").read_text())) == _documented()


def test_readme_commands_are_accepted_by_helm(tmp_path: Path) -> None:
    """``helm install`` with the same options, without a cluster."""
    (tmp_path / "keys.toml").write_text('token_secrets = ["x"]')
    text = (CHART / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^helm (?:install|upgrade --install) (.+)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        name, _, *options = shlex.split(command)
        options = [each.replace("=keys.toml", f"={tmp_path}/keys.toml") for each in options]
        done = run_go_tool("helm", "template", name, CHART, "--kube-version", KUBERNETES, *options)
        assert done.returncode == 0, done.stderr


def test_notes_warn_of_what_is_missing(tmp_path: Path) -> None:
    """Helm prints them only with a cluster: here another template includes them."""
    shutil.copytree(CHART, tmp_path / "synap-realtime")
    (tmp_path / "synap-realtime/templates/notes.yaml").write_text(
        'notes: {{ include "synap-realtime/templates/NOTES.txt" . | toJson }}\n'
    )
    done = run_go_tool(
        "helm", "template", "rooms", tmp_path / "synap-realtime", "--show-only",
        "templates/notes.yaml", "--values", CHART / "ci/ephemeral-values.yaml",
    )  # fmt: skip
    notes = yaml.safe_load(done.stdout)["notes"]
    for warning in ("no browser origins", "unencrypted", "no redundancy", "notifications are lost"):
        assert warning in notes


def test_release_named_as_the_chart_repeats_no_name() -> None:
    done = run_go_tool(
        "helm", "template", "synap-realtime", CHART, "--values", CHART / "ci/minimal-values.yaml"
    )
    assert "\n  name: synap-realtime\n" in done.stdout
    assert "synap-realtime-synap-realtime" not in done.stdout
