"""The Kubernetes files against the real schemas and the policy: nobody is root, nothing listens without the token."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import manifests
import pytest
import yaml
from manifests import Document, Rule, documents

DOCUMENTS = documents()
RAY_KINDS = {"RayCluster", "RayJob"}


def test_all_kinds_are_there() -> None:
    kinds = {document["kind"] for document in DOCUMENTS.values()}
    assert kinds == {*RAY_KINDS, "Namespace", "ServiceAccount", "PersistentVolumeClaim", "NetworkPolicy"}
    assert sum(name.startswith("ray") for name in DOCUMENTS) == 4


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if DOCUMENTS[name]["kind"] not in RAY_KINDS])
def test_kubernetes_own_kinds_fit_its_schema(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own resource warnings
        validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate").validate
    validate(DOCUMENTS[name], "1.34", strict=True)


def test_an_unknown_key_does_not_fit() -> None:
    library = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate")
    wrong = copy.deepcopy(DOCUMENTS["base.yaml/NetworkPolicy/gnnmr-nodes"])
    wrong["spec"]["ingres"] = []
    with pytest.raises(library.ValidationError):
        library.validate(wrong, "1.34", strict=True)


@pytest.fixture(scope="module")
def ray_schemas() -> dict[str, Any]:
    """KubeRay's schemas, closed against unknown keys, by kind."""
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip(
            "KUBERAY_CRDS is not set: it names a folder with KubeRay's ray.io_*.yaml (config/crd/bases there)"
        )
    found = {}
    for file in sorted(Path(folder).glob("ray.io_*.yaml")):
        definition = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]
        stored = next(version for version in definition["versions"] if version["name"] == "v1")
        found[definition["names"]["kind"]] = closed(stored["schema"]["openAPIV3Schema"])
    assert set(found) >= RAY_KINDS
    return found


def closed(schema: Any) -> Any:
    """The schema with what the API server adds to JSON Schema: unknown keys are refused, int-or-string is either."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    done = {key: closed(value) for key, value in schema.items()}
    free = "additionalProperties" in done or done.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(done.get("properties"), dict) and done.get("type") == "object" and not free:
        done["additionalProperties"] = False
    return done


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if DOCUMENTS[name]["kind"] in RAY_KINDS])
def test_ray_kinds_fit_kuberays_schema(ray_schemas: dict[str, Any], name: str) -> None:
    document = DOCUMENTS[name]
    jsonschema.validate(document, ray_schemas[document["kind"]] | {"additionalProperties": True})
    assert document["apiVersion"] == "ray.io/v1"


def test_a_misspelt_key_of_a_ray_kind_does_not_fit(ray_schemas: dict[str, Any]) -> None:
    wrong = copy.deepcopy(DOCUMENTS["raycluster-cpu.yaml/RayCluster/gnnmr"])
    wrong["spec"]["authOption"] = wrong["spec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(wrong, ray_schemas["RayCluster"])


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("rule", manifests.RULES, ids=lambda rule: rule.__name__)
def test_every_document_keeps_every_rule(rule: Rule, name: str) -> None:
    assert rule(DOCUMENTS[name]) == []


def edited(change: Callable[[Document], object]) -> Document:
    document = copy.deepcopy(DOCUMENTS["rayjob-cpu.yaml/RayJob/gnnmr-train"])
    change(document["spec"])
    return document


def head(spec: Document) -> Document:
    found: Document = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return found


OFFENDERS: list[tuple[Rule, Callable[[Document], object]]] = [
    (manifests.nobody_is_root, lambda s: head(s)["securityContext"].pop("runAsNonRoot")),
    (manifests.nobody_is_root, lambda s: head(s)["securityContext"].update(runAsUser=0)),
    (manifests.nobody_is_root, lambda s: s["submitterPodTemplate"]["spec"].pop("securityContext")),
    (manifests.nobody_is_root, lambda s: s.pop("submitterPodTemplate")),
    (manifests.nobody_gains_privileges, lambda s: head(s).update(hostNetwork=True)),
    (
        manifests.nobody_gains_privileges,
        lambda s: head(s)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    (manifests.nobody_gains_privileges, lambda s: head(s)["containers"][0].pop("securityContext")),
    (
        manifests.nobody_gains_privileges,
        lambda s: s["rayClusterSpec"]["autoscalerOptions"].pop("securityContext"),
    ),
    (manifests.resources_are_limited, lambda s: head(s)["containers"][0]["resources"].pop("limits")),
    (manifests.resources_are_limited, lambda s: head(s)["volumes"].append({"name": "x", "emptyDir": {}})),
    (manifests.asks_for_the_token, lambda s: s["rayClusterSpec"].pop("authOptions")),
    (manifests.asks_for_the_token, lambda s: s["rayClusterSpec"]["authOptions"].update(mode="disabled")),
    (
        manifests.asks_for_the_token,
        lambda s: head(s)["containers"][0]["env"].append({"name": "RAY_AUTH_MODE", "value": "disabled"}),
    ),
    (
        manifests.holds_no_secret,
        lambda s: head(s)["containers"][0]["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
    ),
    (
        manifests.stays_inside,
        lambda s: s["rayClusterSpec"]["headGroupSpec"].update(serviceType="LoadBalancer"),
    ),
    (manifests.stays_inside, lambda s: s["rayClusterSpec"]["headGroupSpec"]["template"].pop("metadata")),
    (manifests.names_versions, lambda s: head(s)["containers"][0].update(image="registry:5000/gnnmr")),
    (manifests.names_versions, lambda s: head(s)["containers"][0].update(image="gnnmr:latest")),
    (manifests.accounts_are_small, lambda s: head(s).pop("serviceAccountName")),
    (
        manifests.accounts_are_small,
        lambda s: s["submitterPodTemplate"]["spec"].update(automountServiceAccountToken=True),
    ),
]


@pytest.mark.parametrize(("rule", "change"), OFFENDERS)
def test_each_rule_can_fail(rule: Rule, change: Callable[[Document], object]) -> None:
    assert rule(edited(change))


def test_a_secret_or_an_open_service_is_seen() -> None:
    assert manifests.holds_no_secret({"kind": "Secret"})
    assert manifests.stays_inside({"kind": "Service", "spec": {"type": "NodePort"}})
    assert manifests.stays_inside({"kind": "Ingress"})


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_jobs_cluster_is_the_cluster_that_stays(kind: str) -> None:
    job, cluster = (
        next(document for name, document in DOCUMENTS.items() if name.startswith(f"{file}-{kind}.yaml"))
        for file in ("rayjob", "raycluster")
    )
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    entrypoint = job["spec"]["entrypoint"].split()
    assert int(entrypoint[entrypoint.index("--num-workers") + 1]) == group["minReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) == ("--use-gpu" in entrypoint) == (kind == "gpu")


def test_everything_in_the_namespace_starts_closed() -> None:
    policies = {n: d["spec"] for n, d in DOCUMENTS.items() if d["kind"] == "NetworkPolicy"}
    closed_to_all = policies["base.yaml/NetworkPolicy/gnnmr-nothing"]
    assert closed_to_all == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        assert all(
            rule.get("from") for rule in policy.get("ingress", [])
        )  # a rule without `from` lets everybody in
    enforced = DOCUMENTS["base.yaml/Namespace/gnnmr"]["metadata"]["labels"]
    assert enforced["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {d["metadata"].get("namespace", "gnnmr") for d in DOCUMENTS.values()} == {"gnnmr"}


def test_ray_is_the_version_of_the_constraints() -> None:
    pinned = (manifests.ROOT / "constraints.txt").read_text(encoding="utf-8")
    versions = {cluster["rayVersion"] for d in DOCUMENTS.values() for cluster in manifests.clusters(d)}
    assert [f"\nray=={version}\n" in pinned for version in versions] == [True]
