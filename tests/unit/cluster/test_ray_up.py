"""The files for `ray up` against Ray's own schema and our policy: token on, nothing but SSH from outside."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = sorted((ROOT / "cluster" / "ray_up").glob("*.yaml"))
Config = dict[str, Any]


def read(name: str) -> Config:
    found: Config = yaml.safe_load((ROOT / "cluster" / "ray_up" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def problems(config: Config) -> list[str]:
    """What the policy has against a configuration."""
    found = []
    for kind in ("head", "worker"):
        starts = [line for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]
        found += [f"{kind}: no token" for line in starts if not line.startswith("RAY_AUTH_MODE=token ")]
        found += [f"{kind}: starts nothing"] if not starts else []
        found += [f"{kind}: open dashboard" for line in starts if "--dashboard-host=0" in line]
    if "--dashboard-host=127.0.0.1" not in " ".join(config["head_start_ray_commands"]):
        found.append("dashboard not on loopback")
    if config["auth"]["ssh_user"] == "root":
        found.append("root")
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        found.append("token not sent by SSH")
    installs = [line for line in config["setup_commands"] if "pip install" in line]
    found += [
        f"without hashes: {line}"
        for line in installs
        if "--require-hashes" not in line and "--no-deps" not in line
    ]
    for rule in config["provider"].get("security_group", {}).get("IpPermissions", []):
        if (
            rule["FromPort"] != 22
            or rule["ToPort"] != 22
            or any(r["CidrIp"] == "0.0.0.0/0" for r in rule["IpRanges"])
        ):
            found.append("open to the world")
    return found


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_it_fits_rays_schema_and_the_policy(name: str) -> None:
    config = read(name)
    validate_config(prepare_config(copy.deepcopy(config)))
    assert problems(config) == []


def test_there_are_machines_and_clouds() -> None:
    assert {read(file.stem)["provider"]["type"] for file in FILES} == {"local", "aws"}
    assert read("aws")["available_node_types"]["gpu"]["resources"]["GPU"] == 1


def test_rays_schema_refuses_a_misspelt_key() -> None:
    wrong = read("aws")
    wrong["max_worker"] = wrong.pop("max_workers")
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_start_ray_commands", ["ray start --head --dashboard-host=0.0.0.0"]),
        ("worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"]),
        ("auth", {"ssh_user": "root"}),
        ("file_mounts", {}),
        ("setup_commands", ["pip install ray"]),
        (
            "provider",
            {
                "security_group": {
                    "IpPermissions": [{"FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
                }
            },
        ),
    ],
)
def test_the_policy_can_fail(key: str, value: object) -> None:
    assert problems(read("aws") | {key: value})
