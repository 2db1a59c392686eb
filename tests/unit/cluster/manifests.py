"""The Kubernetes files of the project, and the policy that they must keep: each rule maps a document to violations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "cluster" / "kubernetes"
Document = dict[str, Any]
Rule = Callable[[Document], list[str]]


def documents() -> dict[str, Document]:
    """Every document of every file, by ``file/kind/name``."""
    return {
        f"{file.name}/{document['kind']}/{document['metadata']['name']}": document
        for file in sorted(FOLDER.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    }


def clusters(document: Document) -> list[Document]:
    """The RayCluster specs in a document."""
    spec = document.get("spec", {})
    return {"RayCluster": [spec], "RayJob": [spec.get("rayClusterSpec", {})]}.get(document["kind"], [])


def pods(document: Document) -> Iterator[tuple[str, Document, Document]]:
    """(name, metadata, spec) of every pod that the document makes; the autoscaler is a container beside the head."""
    for cluster in clusters(document):
        head = cluster["headGroupSpec"]["template"]
        extra = [{"name": "autoscaler", "image": "(the head's)", **cluster["autoscalerOptions"]}]
        scaling = extra if cluster.get("enableInTreeAutoscaling") else []
        yield (
            "head",
            head.get("metadata", {}),
            head["spec"] | {"containers": head["spec"]["containers"] + scaling},
        )
        for group in cluster["workerGroupSpecs"]:
            yield group["groupName"], group["template"].get("metadata", {}), group["template"]["spec"]
    if document["kind"] == "RayJob":
        template = document["spec"].get("submitterPodTemplate")
        if template is None:
            yield "submitter", {}, {"containers": [{"name": "KubeRay's default"}]}
        else:
            yield "submitter", template.get("metadata", {}), template["spec"]


def containers(document: Document) -> Iterator[tuple[str, Document, Document]]:
    """(pod/container, pod spec, container) of every container."""
    for name, _, spec in pods(document):
        for container in spec["containers"] + spec.get("initContainers", []):
            yield f"{name}/{container['name']}", spec, container


def nobody_is_root(document: Document) -> list[str]:
    """Pods run as a numbered user that is not root, under the default seccomp filter; no container overrides it."""
    found = []
    for name, _, spec in pods(document):
        security = spec.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            found.append(f"{name}: may run as root")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            found.append(f"{name}: no seccomp profile")
    for name, _, container in containers(document):
        security = container.get("securityContext", {})
        if security.get("runAsNonRoot", True) is not True or security.get("runAsUser") == 0:
            found.append(f"{name}: may run as root")
    return found


def nobody_gains_privileges(document: Document) -> list[str]:
    """No escalation, no capabilities, a read-only file system, nothing of the node's (network, paths, ports)."""
    found = []
    for name, _, spec in pods(document):
        found += [
            f"{name}: {key}"
            for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
            if spec.get(key)
        ]
        found += [f"{name}: hostPath" for volume in spec.get("volumes", []) if "hostPath" in volume]
    for name, _, container in containers(document):
        security = container.get("securityContext", {})
        safe = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        found += [f"{name}: {key}" for key, value in safe.items() if security.get(key) != value]
        found += [f"{name}: privileged"] if security.get("privileged") else []
        found += [f"{name}: hostPort" for port in container.get("ports", []) if "hostPort" in port]
    return found


def resources_are_limited(document: Document) -> list[str]:
    """Every container asks for and is limited in CPU and memory; scratch and memory volumes have a size."""
    found = [
        f"{name}: {kind} of {what}"
        for name, _, container in containers(document)
        for kind in ("requests", "limits")
        for what in ("cpu", "memory")
        if what not in container.get("resources", {}).get(kind, {})
    ]
    for name, _, spec in pods(document):
        found += [
            f"{name}: {volume['name']} has no size"
            for volume in spec.get("volumes", [])
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {})
        ]
    return found


def asks_for_the_token(document: Document) -> list[str]:
    """Ray's token authentication is on, its token comes from a Secret by name, and nothing overrides either."""
    found = []
    for cluster in clusters(document):
        options = cluster.get("authOptions", {})
        if options.get("mode") != "token" or not options.get("secretName"):
            found.append("no token authentication")
    for name, _, container in containers(document):
        found += [
            f"{name}: sets {variable['name']}"
            for variable in container.get("env", [])
            if variable["name"].startswith(("RAY_AUTH", "RAY_ENABLE_K8S_TOKEN"))
        ]
    return found


def holds_no_secret(document: Document) -> list[str]:
    """No Secret with contents, and no variable whose name speaks of one with a value in the file."""
    found = ["a Secret in a file"] if document["kind"] == "Secret" else []
    words = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
    found += [
        f"{name}: {variable['name']} has its value here"
        for name, _, container in containers(document)
        for variable in container.get("env", [])
        if any(word in variable["name"].upper() for word in words) and "value" in variable
    ]
    return found


def stays_inside(document: Document) -> list[str]:
    """Nothing is offered beyond the cluster: no Ingress, no service but ClusterIP; pods carry the label of a policy."""
    found = [document["kind"]] if document["kind"] in {"Ingress", "Route", "Gateway", "HTTPRoute"} else []
    if document["kind"] == "Service" and document["spec"].get("type", "ClusterIP") != "ClusterIP":
        found.append("a service beyond the cluster")
    for cluster in clusters(document):
        head = cluster["headGroupSpec"]
        if (
            head.get("serviceType", "ClusterIP") != "ClusterIP"
            or head.get("enableIngress")
            or "headService" in head
        ):
            found.append("the head is offered beyond the cluster")
    labels = {"gnnmr-node", "gnnmr-submitter"}
    found += [
        f"{name}: no network policy is its own"
        for name, metadata, _ in pods(document)
        if metadata.get("labels", {}).get("app.kubernetes.io/name") not in labels
    ]
    return found


def names_versions(document: Document) -> list[str]:
    """Images have a tag that is not `latest`, or a digest."""
    found = []
    for name, _, container in containers(document):
        image = container.get("image", "")
        tag = image.rpartition("/")[2].partition(":")[2]
        if image != "(the head's)" and "@sha256:" not in image and tag in {"", "latest"}:
            found.append(f"{name}: image {image or 'of unknown version'}")
    return found


def accounts_are_small(document: Document) -> list[str]:
    """Only the head (its autoscaler) has a credential of the API server; nobody has the default account."""
    return [
        f"{name}: {spec.get('serviceAccountName', 'default account')}"
        for name, _, spec in pods(document)
        if spec.get("serviceAccountName") != ("gnnmr-head" if name == "head" else "gnnmr-worker")
        or (name != "head" and spec.get("automountServiceAccountToken") is not False)
    ]


RULES: list[Rule] = [
    nobody_is_root,
    nobody_gains_privileges,
    resources_are_limited,
    asks_for_the_token,
    holds_no_secret,
    stays_inside,
    names_versions,
    accounts_are_small,
]
