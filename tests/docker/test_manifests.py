"""docker/kubernetes: manifests that Kubernetes' schemas accept, confined pods, and names that lead somewhere.

RayCluster has no schema here; its pod templates are held against PodTemplate's.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from care_sweep.settings import Settings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docker" / "kubernetes"
Manifest = dict[str, Any]


def _documents(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _base() -> list[Manifest]:
    (kustomization,) = _documents(KUBERNETES / "base" / "kustomization.yaml")
    return [one for name in kustomization["resources"] for one in _documents(KUBERNETES / "base" / name)]


def _overlaid(*folders: str) -> list[Manifest]:
    """The base with what overlays and components add, as far as they use JSON Patch: add and replace."""
    manifests = _base()
    for folder in (KUBERNETES / name for name in folders):
        (kustomization,) = _documents(folder / "kustomization.yaml")
        added = [folder / name for name in kustomization["resources"] if name.endswith(".yaml")]
        manifests += [one for path in added for one in _documents(path)]
        for patch in kustomization["patches"]:
            wanted = patch["target"]["kind"], patch["target"]["name"]
            (target,) = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == wanted]
            for operation in yaml.safe_load((folder / patch["path"]).read_text()):
                _patch(target, operation)
    return manifests


def _patch(target: Manifest, operation: Manifest) -> None:
    *parents, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
    place: Any = target
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    assert operation["op"] in ("add", "replace")
    value = copy.deepcopy(operation["value"])
    if isinstance(place, list):
        assert (operation["op"], last) == ("add", "-")
        place.append(value)
    else:
        assert operation["op"] == "add" or last in place
        place[last] = value


MANIFESTS = {
    "base": _base(),
    "gpu": _overlaid("gpu"),
    "base, datasets": _overlaid("datasets"),
    "gpu, datasets": _overlaid("gpu", "datasets"),
}
everywhere = pytest.mark.parametrize("manifests", MANIFESTS.values(), ids=MANIFESTS)


def _of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def _templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Each pod's name and template."""
    for name, deployment in _of_kind(manifests, "Deployment").items():
        yield name, deployment["spec"]["template"]
    for cluster in _of_kind(manifests, "RayCluster").values():
        yield "head", cluster["spec"]["headGroupSpec"]["template"]
        for group in cluster["spec"]["workerGroupSpecs"]:
            yield group["groupName"], group["template"]


def _environment(container: Manifest) -> dict[str, Manifest]:
    return {variable["name"]: variable for variable in container.get("env", [])}


@everywhere
def test_the_schemas_of_kubernetes_accept_it(manifests: list[Manifest]) -> None:
    for one in manifests:
        if one["kind"] != "RayCluster":
            kubernetes_validate.validate(one, "1.31", strict=True)
    for name, template in _templates(manifests):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
        kubernetes_validate.validate(pod, "1.31", strict=True)


def test_a_key_that_kubernetes_does_not_know_is_noticed() -> None:
    deployment = copy.deepcopy(_of_kind(MANIFESTS["base"], "Deployment")["care-sweep-api"])
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.31", strict=True)


def test_every_file_is_a_resource() -> None:
    for folder in KUBERNETES.iterdir():
        (kustomization,) = _documents(folder / "kustomization.yaml")
        resources = {(folder / name).resolve() for name in kustomization["resources"]}
        patches = {folder / patch["path"] for patch in kustomization.get("patches", [])}
        assert all(path.exists() for path in resources | patches)
        assert {*folder.glob("*.yaml")} - resources - patches == {folder / "kustomization.yaml"}


@everywhere
def test_pods_are_confined_and_tell_how_they_are(manifests: list[Manifest]) -> None:
    for name, template in _templates(manifests):
        pod = template["spec"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == 10001, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert name == "head" or pod["automountServiceAccountToken"] is False  # the autoscaler needs it
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= container.keys(), name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/home/care"} <= mounted, name  # noqa: S108


@everywhere
def test_workers_can_fetch_images(manifests: list[Manifest]) -> None:
    """From a bucket, to a folder below that of the datasets."""
    settings = Settings.from_environment({"CARE_SWEEP_HOME": "/home/care"})
    cache = settings.download_directory / "s3"
    (cluster,) = _of_kind(manifests, "RayCluster").values()
    for group in cluster["spec"]["workerGroupSpecs"]:
        for container in group["template"]["spec"]["containers"]:
            above = [one for one in container["volumeMounts"] if cache.is_relative_to(one["mountPath"])]
            nearest = max(above, key=lambda one: len(one["mountPath"]))
            assert not nearest.get("readOnly"), nearest


def test_only_the_datasets_want_a_shared_volume() -> None:
    def shared(name: str) -> set[str]:
        claims = _of_kind(MANIFESTS[name], "PersistentVolumeClaim").items()
        return {claim for claim, one in claims if "ReadWriteMany" in one["spec"]["accessModes"]}

    assert (shared("base"), shared("gpu")) == (set(), set())
    assert shared("base, datasets") == {"care-sweep-data"}
    (configuration,) = _of_kind(MANIFESTS["base"], "ConfigMap").values()
    roots = Settings.from_environment({**configuration["data"], "CARE_SWEEP_HOME": "/home/care"})
    assert (roots.data_uris, roots.data_roots) == (("s3://images",), (Path("/data"),))


def test_the_namespace_is_made_before_the_secrets_in_it() -> None:
    words = (KUBERNETES / "base" / "kustomization.yaml").read_text()
    (namespace,) = _of_kind(MANIFESTS["base"], "Namespace")
    commands = re.findall(r"#     kubectl (.*)", words)
    assert commands[0] == "apply -f docker/kubernetes/base/namespace.yaml"
    assert all(command.startswith((f"-n {namespace} ", "apply ")) for command in commands)
    applied = commands.index("apply -k docker/kubernetes/base")
    created = [number for number, command in enumerate(commands) if "create secret" in command]
    assert 0 < min(created) <= max(created) < applied
    assert any("-- care-sweep token create" in command for command in commands[applied:])


@everywhere
def test_what_is_referred_to_is_there(manifests: list[Manifest]) -> None:
    secrets = _documented_secrets()
    claims, maps = _of_kind(manifests, "PersistentVolumeClaim"), _of_kind(manifests, "ConfigMap")
    (kustomization,) = _documents(KUBERNETES / "base" / "kustomization.yaml")
    images = {image["name"] for image in kustomization["images"]}
    used = set()
    for name, template in _templates(manifests):
        pod = template["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        claimed = [one["persistentVolumeClaim"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
        assert all(claim["claimName"] in claims for claim in claimed), name
        for container in pod["containers"]:
            assert container["image"] in images
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
            for source in container.get("envFrom", []):
                assert "secretRef" not in source or source["secretRef"]["name"] in secrets, name
                assert "configMapRef" not in source or source["configMapRef"]["name"] in maps, name
                used.add(source.get("secretRef", {}).get("name"))
            for variable in _environment(container).values():
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in secrets[reference["name"]], name
                    used.add(reference["name"])
    assert secrets.keys() == used - {None}, "each Secret that is asked for is used"
    assert secrets["care-sweep-storage"] == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


@everywhere
def test_probes_services_and_commands_lead_somewhere(manifests: list[Manifest]) -> None:
    templates = list(_templates(manifests))
    for name, template in templates:
        for container in template["spec"]["containers"]:
            ports = {port["name"] for port in container.get("ports", [])}
            words = list(container.get("args", []))
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                words += container[probe].get("exec", {}).get("command", [])
                if "httpGet" in container[probe]:
                    assert container[probe]["httpGet"]["port"] in ports, name
            for word in words:
                if word.startswith("/opt/care-sweep/"):
                    assert (ROOT / "docker" / Path(word).name).is_file(), word
    for service in _of_kind(manifests, "Service").values():
        (selected,) = [
            template
            for _, template in templates
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]
        named = {p["name"] for one in selected["spec"]["containers"] for p in one.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@everywhere
def test_the_runner_finds_the_head_and_all_have_its_token(manifests: list[Manifest]) -> None:
    ((cluster_name, cluster),) = _of_kind(manifests, "RayCluster").items()
    pods = {name: template["spec"]["containers"][0] for name, template in _templates(manifests)}
    (gcs,) = [port["containerPort"] for port in pods["head"]["ports"] if port["name"] == "gcs-server"]
    address = _environment(pods["care-sweep-runner"])["RAY_ADDRESS"]["value"]
    assert address == f"{cluster_name}-head-svc:{gcs}"  # as KubeRay names it
    api = pods.pop("care-sweep-api")
    assert not {name for name in _environment(api) if name.startswith("RAY")}
    tokens = [_environment(one)["RAY_AUTH_TOKEN"] for one in pods.values()]
    tokens.append(_environment(cluster["spec"]["autoscalerOptions"])["RAY_AUTH_TOKEN"])
    assert all(token == tokens[0] for token in tokens)
    assert {_environment(one)["RAY_AUTH_MODE"]["value"] for one in pods.values()} == {"token"}


@everywhere
def test_only_api_and_runner_know_and_reach_the_database(manifests: list[Manifest]) -> None:
    """And only the runner and Ray's own pods reach Ray."""
    pods = dict(_templates(manifests))
    with_database = {
        name
        for name, template in pods.items()
        if any("CARE_SWEEP_DATABASE_URL" in _environment(one) for one in template["spec"]["containers"])
    }
    assert with_database == {"care-sweep-api", "care-sweep-runner"}
    policies = _of_kind(manifests, "NetworkPolicy")
    nothing = policies["nothing-by-default"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    may_send_to = {
        name: [
            port["port"]
            for policy in policies.values()
            if _selects(policy["spec"]["podSelector"], template)
            for rule in policy["spec"].get("egress", [])
            for port in rule.get("ports", [])
        ]
        for name, template in pods.items()
    }
    assert {name for name, ports in may_send_to.items() if 5432 in ports} == with_database
    reached = [
        (target, source)
        for target, reached in pods.items()
        for policy in policies.values()
        if _selects(policy["spec"]["podSelector"], reached)
        for rule in policy["spec"].get("ingress", [])
        for peer in rule.get("from", [])
        for source, template in pods.items()
        if _selects(peer["podSelector"], template)
    ]
    of_ray = pods.keys() - {"care-sweep-api"}
    assert set(reached) == {(target, source) for target in of_ray for source in of_ray}
    open_to_all = [
        policy["spec"]["podSelector"]
        for policy in policies.values()
        if any("from" not in rule for rule in policy["spec"].get("ingress", []))
    ]
    assert [name for name in pods if _selects(open_to_all[0], pods[name])] == ["care-sweep-api"]
    assert len(open_to_all) == 1


def _selects(selector: Manifest, template: Manifest) -> bool:
    labels = template["metadata"]["labels"]
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def _documented_secrets() -> dict[str, set[str]]:
    """Names and keys of the Secrets that the head of base/kustomization.yaml has its reader make."""
    comment = re.sub(r"\\\n#", "", (KUBERNETES / "base" / "kustomization.yaml").read_text())
    found = re.findall(r"create secret generic (\S+) (.*)", comment)
    return {name: set(re.findall(r"--from-literal=(\w+)=", literals)) for name, literals in found}
