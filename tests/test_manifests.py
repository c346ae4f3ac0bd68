"""The Kubernetes manifests: rendered as by `kubectl apply -k`, each checked strictly and against our own settings."""

import re
import subprocess
from base64 import b64decode
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from parley.api.keys import load_keys
from parley.settings import Settings
from tests.conftest import Served, needs
from tests.scrape import scrape

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/deploy.md").read_text("utf-8")
OVERLAYS = ["cpu", "gpu", "single-node"]
KUBERNETES = "1.36"
STOP_SECONDS = 20
"""What the service needs to end after its drain."""

# The part of monitoring.coreos.com/v1 that we use, closed against misspelt keys: Kubernetes has no schema of it.
SERVICE_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "endpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchLabels": {"additionalProperties": {"type": "string"}}},
                },
                "endpoints": {
                    "type": "array",
                    "items": {
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"pattern": "^[0-9]+(ms|s|m|h)$"},
                            "honorLabels": {"type": "boolean"},
                            "authorization": {
                                "additionalProperties": False,
                                "properties": {
                                    "credentials": {
                                        "additionalProperties": False,
                                        "properties": {"name": {"type": "string"}, "key": {"type": "string"}},
                                    }
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@cache
def render(overlay: str) -> str:
    """The overlay's manifests as one YAML stream."""
    return kustomize(ROOT / "deploy/kubernetes/overlays" / overlay)


def kustomize(folder: Path) -> str:
    """What `kubectl apply -k` would send, as one YAML stream."""
    needs("kubectl")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def manifests(overlay: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Every object of the overlay by kind and name; the names of generated settings without their hash."""
    return by_name(render(overlay))


def by_name(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Every object of a YAML stream by kind and name, as `manifests` has them."""
    return {(each["kind"], _plain_name(each)): each for each in yaml.safe_load_all(text) if each}


def _plain_name(manifest: dict[str, Any]) -> str:
    name: str = manifest["metadata"]["name"]
    return name.rpartition("-")[0] if manifest["kind"] == "ConfigMap" else name


def pod(overlay: str, name: str) -> dict[str, Any]:
    """The pod specification of a Deployment."""
    spec: dict[str, Any] = manifests(overlay)["Deployment", name]["spec"]["template"]["spec"]
    return spec


def blocks(language: str) -> list[str]:
    """The blocks of docs/deploy.md in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the Secrets hold, by name, when an operator has typed the commands of docs/deploy.md."""
    needs("kubectl")
    folder = tmp_path_factory.mktemp("operator")
    (keys,) = blocks("toml")
    hashes = iter([f"{number:064x}" for number in range(keys.count('"..."'))])
    (folder / "keys.toml").write_text(re.sub(r"\.\.\.", lambda _: next(hashes), keys))
    for name in re.findall(r"--from-file=api-key=(\S+)", PAGE):
        (folder / name).write_text("parley-key")
    made: dict[str, dict[str, str]] = {}
    for command in re.findall(r"^\$ (kubectl -n parley create secret .*?) \| kubectl apply -f -$", PAGE, re.M | re.S):
        secret = yaml.safe_load(subprocess.check_output(["bash", "-c", command], cwd=folder, text=True))
        assert secret["metadata"]["namespace"] == "parley"
        made[secret["metadata"]["name"]] = {key: b64decode(value).decode() for key, value in secret["data"].items()}
    return made


def validate(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks against Kubernetes' own schemas; unknown keys are errors."""
    needs("kubernetes-validate")
    path = folder / "manifests.yaml"
    path.write_text(text, "utf-8")
    command = ["kubernetes-validate", "--strict", "-k", KUBERNETES, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid(overlay: str, tmp_path: Path) -> None:
    """Fails when the cluster would refuse a manifest, or silently drop a misspelt key of it."""
    done = validate(render(overlay), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    foreign = [line for line in (done.stdout + done.stderr).splitlines() if "Couldn't find schema" in line]
    assert all("ServiceMonitor" in line for line in foreign)


def test_a_misspelt_key_is_seen(tmp_path: Path) -> None:
    """Fails when the check above would pass anything."""
    needs("kubectl")
    assert validate(render("cpu").replace("readinessProbe:", "readynessProbe:"), tmp_path).returncode != 0


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_service_monitor_is_valid(overlay: str) -> None:
    """Fails when Prometheus would not find the metrics: a misspelt key, or a port that the service does not have."""
    monitor = manifests(overlay)["ServiceMonitor", "parley"]
    jsonschema.validate(monitor, SERVICE_MONITOR)
    service = manifests(overlay)["Service", "parley"]
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_accepts_its_settings(overlay: str) -> None:
    """Fails when a pod would end at its start because a PARLEY_ variable is not a setting, or no longer one."""
    Settings.from_env(manifests(overlay)["ConfigMap", "parley-settings"]["data"])


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["parley", "parley-client"])
def test_pods_get_no_settings_from_service_links(overlay: str, name: str) -> None:
    """Fails when Kubernetes puts PARLEY_PORT and its like into the pods: unknown settings end the service's start."""
    assert pod(overlay, name)["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_grace_covers_pause_drain_and_stop(overlay: str) -> None:
    """Fails when a pod is killed while it still finishes answers."""
    settings = Settings.from_env(manifests(overlay)["ConfigMap", "parley-settings"]["data"])
    spec = pod(overlay, "parley")
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= pause + settings.drain_grace + STOP_SECONDS


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["parley", "parley-client"])
def test_pods_are_hardened(overlay: str, name: str) -> None:
    """Fails when a pod could run as root, write its root, gain privileges, or starve its node."""
    spec = pod(overlay, name)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert isinstance(spec["securityContext"]["runAsUser"], int)
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["parley", "parley-client"])
def test_probes_need_no_curl(overlay: str, name: str) -> None:
    """Fails when a probe runs what the image does not have: `httpGet` becomes curl under `podman kube play`."""
    (container,) = pod(overlay, name)["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"][0] == "python"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_their_pods(overlay: str) -> None:
    """Fails when a Service, a budget or a policy points at no pod."""
    objects = manifests(overlay)
    for name in ("parley", "parley-client"):
        labels = objects["Deployment", name]["spec"]["template"]["metadata"]["labels"].items()
        assert objects["Service", name]["spec"]["selector"].items() <= labels
        assert objects["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"].items() <= labels
        assert objects["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"].items() <= labels


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_apply_writes_over_a_key(overlay: str) -> None:
    """Fails when each `kubectl apply` puts placeholders in the place of real keys, and all clients get 401."""
    assert not [name for kind, name in manifests(overlay) if kind == "Secret"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_keys_are_read_where_the_operator_puts_them(
    overlay: str, secrets: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Fails when the page's commands leave the service without its file of keys, or with one that it does not take."""
    spec = pod(overlay, "parley")
    (secret,) = [volume["secret"]["secretName"] for volume in spec["volumes"] if volume["name"] == "keys"]
    (folder,) = [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "keys"]
    settings = manifests(overlay)["ConfigMap", "parley-settings"]["data"]
    assert settings["PARLEY_KEYS_FILE"] in [f"{folder}/{key}" for key in secrets[secret]]
    (tmp_path / "keys.toml").write_text(secrets[secret]["keys.toml"])
    assert not load_keys(tmp_path / "keys.toml").open_to_all


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_name_exists(overlay: str, secrets: dict[str, dict[str, str]]) -> None:
    """Fails when a pod waits for ever for a ConfigMap, a volume claim or a Secret that nothing, and nobody, makes."""
    present = {(each["kind"], each["metadata"]["name"]) for each in manifests(overlay).values()}
    for name in ("parley", "parley-client"):
        spec = pod(overlay, name)
        maps = {("ConfigMap", source["configMapRef"]["name"]) for source in spec["containers"][0]["envFrom"]}
        volumes = spec["volumes"]
        assert {volume["secret"]["secretName"] for volume in volumes if "secret" in volume} <= secrets.keys()
        for variable in spec["containers"][0].get("env", []):
            source = variable["valueFrom"]["secretKeyRef"]
            assert source["key"] in secrets[source["name"]]
        claims = {each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each}
        assert maps | {("PersistentVolumeClaim", claim) for claim in claims} <= present


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_start_under_any_storage_class(overlay: str) -> None:
    """Fails when pods wait for ever for a volume that the default classes of EKS, GKE and kind cannot make."""
    claims = [each for (kind, _), each in manifests(overlay).items() if kind == "PersistentVolumeClaim"]
    assert all(claim["spec"]["accessModes"] == ["ReadWriteOnce"] for claim in claims)
    (models,) = [volume for volume in pod(overlay, "parley")["volumes"] if volume["name"] == "models"]
    assert claims or models["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_engine_uses_the_cpus_that_its_pod_asks_for(overlay: str) -> None:
    """Fails when the engine of a pod without a CPU limit takes every core of its node, or leaves its own idle."""
    settings = Settings.from_env(manifests(overlay)["ConfigMap", "parley-settings"]["data"])
    assert settings.threads == int(pod(overlay, "parley")["containers"][0]["resources"]["requests"]["cpu"])


@pytest.fixture(scope="module")
def page_overlay(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The manifests of an overlay of one's own that has all that docs/deploy.md says to put into it."""
    folder = tmp_path_factory.mktemp("overlays")
    (folder / "parley").symlink_to(ROOT)
    (folder / "mine").mkdir()
    kustomization: dict[str, list[Any]] = {}
    fragments = [each for block in blocks("yaml") for each in yaml.safe_load_all(block)]
    for fragment in fragments:
        if fragment.get("kind") == "NetworkPolicy":
            (folder / "mine/collector.yaml").write_text(yaml.safe_dump(fragment))
        elif fragment.keys() <= {"resources", "components", "images", "patches", "configMapGenerator"}:
            kustomization = {
                key: kustomization.get(key, []) + fragment.get(key, []) for key in kustomization | fragment
            }
    (folder / "mine/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return kustomize(folder / "mine")


def test_overlay_of_the_page_is_valid(page_overlay: str, tmp_path: Path) -> None:
    """Fails when what the page says to put into an overlay is refused by the cluster or by the service."""
    done = validate(page_overlay, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    Settings.from_env(by_name(page_overlay)["ConfigMap", "parley-settings"]["data"])


def test_hosts_are_ones_own_and_have_certificates(page_overlay: str) -> None:
    """Fails when who follows the page serves somebody else's host name, or a certificate that nobody makes."""
    for name in ("parley", "parley-client"):
        spec = by_name(page_overlay)["Ingress", name]["spec"]
        (rule,), (tls,) = spec["rules"], spec["tls"]
        assert not rule["host"].endswith("example.com")
        assert tls["hosts"] == [rule["host"]]
        assert f"`{tls['secretName']}`" in PAGE


def test_models_are_shared_where_the_class_allows_it(page_overlay: str) -> None:
    """Fails when each replica downloads its model again although the overlay has `components/models`."""
    objects = by_name(page_overlay)
    claim = objects["PersistentVolumeClaim", "parley-models"]
    deployment = objects["Deployment", "parley"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"]
    assert claim["metadata"]["namespace"] == deployment["metadata"]["namespace"]
    (models,) = [each for each in deployment["spec"]["template"]["spec"]["volumes"] if each["name"] == "models"]
    assert models == {"name": "models", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}


def test_monitor_is_found_by_the_usual_chart(page_overlay: str) -> None:
    """Fails when kube-prometheus-stack passes the monitor over because it lacks the release's label."""
    labels = by_name(page_overlay)["ServiceMonitor", "parley"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": "parley", "release": "kube-prometheus-stack"}


def test_traces_reach_the_collector_of_the_page(page_overlay: str) -> None:
    """Fails when the page's egress rule is for other pods, or another port, than the endpoint that it sets."""
    objects = by_name(page_overlay)
    policy = objects["NetworkPolicy", "parley-collector"]
    labels = objects["Deployment", "parley"]["spec"]["template"]["metadata"]["labels"]
    endpoint = urlsplit(objects["ConfigMap", "parley-settings"]["data"]["OTEL_EXPORTER_OTLP_ENDPOINT"])
    (collector, names) = policy["spec"]["egress"]
    assert policy["metadata"]["namespace"] == objects["Deployment", "parley"]["metadata"]["namespace"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert [port["port"] for port in collector["ports"]] == [endpoint.port]
    assert {port["port"] for port in names["ports"]} == {53}


def test_queue_scales_first_and_cpu_stands_in() -> None:
    """Fails when the autoscaler has no second metric where the queue's is missing, or fights over the replica count."""
    objects = manifests("cpu")
    metrics = objects["HorizontalPodAutoscaler", "parley"]["spec"]["metrics"]
    assert {metric["type"] for metric in metrics} == {"Resource", "Pods"}
    assert "replicas" not in objects["Deployment", "parley"]["spec"]


def test_queue_metric_is_one_that_the_service_has(echo_service: Served) -> None:
    """Fails when the autoscaler waits for a metric that the adapter's rule does not make, or the service does not."""
    metrics = manifests("cpu")["HorizontalPodAutoscaler", "parley"]["spec"]["metrics"]
    (asked,) = [metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"]
    (adapter,) = [block for block in blocks("yaml") if "seriesQuery" in block]
    (rule,) = yaml.safe_load(adapter)["rules"]
    assert rule["name"]["as"] == asked
    assert rule["seriesQuery"].partition("{")[0] in {name for name, _ in scrape(echo_service)}


def test_prometheus_asks_with_a_key_of_its_own(secrets: dict[str, dict[str, str]]) -> None:
    """Fails when the metrics stay empty because nobody made their key, or when it cannot be told from the page's."""
    (endpoint,) = manifests("cpu")["ServiceMonitor", "parley"]["spec"]["endpoints"]
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["key"] in secrets[credentials["name"]]
    (variable,) = pod("cpu", "parley-client")["containers"][0]["env"]
    assert variable["valueFrom"]["secretKeyRef"]["name"] != credentials["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_reaches_nobody(overlay: str) -> None:
    """Fails when an overlay opens a way out that nobody asked for."""
    policy = manifests(overlay)["NetworkPolicy", "parley"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert "egress" not in policy


def test_policies_allow_only_what_is_needed() -> None:
    """Fails when anyone but the client, the ingress and Prometheus may reach the service."""
    (rule,) = manifests("cpu")["NetworkPolicy", "parley"]["spec"]["ingress"]
    client = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "parley-client"}}}
    namespaces = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in ("ingress-nginx", "monitoring")
    ]
    assert rule == {"from": [client, *namespaces], "ports": [{"port": "http"}]}


def test_streams_pass_the_ingress() -> None:
    """Fails when the ingress would buffer a stream, or cut it while a long answer is under way."""
    notes = manifests("cpu")["Ingress", "parley"]["metadata"]["annotations"]
    assert notes["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    drain = Settings.from_env(manifests("cpu")["ConfigMap", "parley-settings"]["data"]).drain_grace
    assert int(notes["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > drain


def test_gpu_pods_ask_for_a_device() -> None:
    """Fails when a CUDA pod lands on a node without a device, or the CPU image is run there."""
    spec = pod("gpu", "parley")
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["containers"][0]["image"].endswith("-gpu")
