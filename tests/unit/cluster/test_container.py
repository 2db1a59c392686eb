"""The container: versions with hashes that agree with constraints.txt, a base by digest, a user that is not root."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from types import ModuleType

import pytest
from manifests import ROOT

FOLDER = ROOT / "cluster" / "container"
LINE = re.compile(r"([a-z0-9][a-z0-9.\-]*)==([A-Za-z0-9.+]+) --hash=sha256:([0-9a-f]{64})")


def pinned(text: str) -> dict[str, str]:
    """Versions by name, names as PyPI normalises them."""
    pairs = [line.split()[0].split("==") for line in text.splitlines() if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("requirements", FOLDER / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_every_requirement_has_a_version_and_a_hash(flavour: str) -> None:
    text = (FOLDER / f"requirements-{flavour}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == sorted(lines)
    assert all(LINE.fullmatch(line) for line in lines)
    versions, known = pinned(text), pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    cuda = {name for name in versions if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert bool(cuda) == (flavour == "gpu")
    assert versions.pop("torch") == known["torch"] + ("+cpu" if flavour == "cpu" else "")
    assert {name: known.get(name) for name in versions.keys() - cuda} == {
        name: version for name, version in versions.items() if name not in cuda
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["cluster"]
    assert {re.split(r"[>\[]", line)[0] for line in asked} <= {*versions, "torch"}


def test_pips_report_becomes_lines(writer: ModuleType) -> None:
    item = {
        "metadata": {"name": "Jinja2", "version": "3.1"},
        "download_info": {"archive_info": {"hashes": {"sha256": "ab"}}},
    }
    own = {"metadata": {"name": "gnnmr-dist", "version": "0"}, "download_info": {"dir_info": {}}}
    other = item | {"metadata": {"name": "aiohttp_cors", "version": "1"}}
    assert writer.lines({"install": [item, own, other]}) == [
        "aiohttp-cors==1 --hash=sha256:ab",
        "jinja2==3.1 --hash=sha256:ab",
    ]
    assert writer.torch_version("a==1\ntorch-geometric==2\ntorch==2.13.0\n") == "2.13.0"


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, rest) of a container file, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", text))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


def test_the_image_is_pinned_and_not_roots() -> None:
    steps = instructions((FOLDER / "Containerfile").read_text(encoding="utf-8"))
    rest = {name: [text for other, text in steps if other == name] for name, _ in steps}
    assert rest["FROM"] == ["${BASE}"]
    assert "BASE" in rest["ARG"]  # no default
    assert "@sha256:" in rest["RUN"][0]
    assert rest["USER"] == ["10001:10001"]
    assert [name for name, _ in steps].index("USER") > max(
        i for i, (name, _) in enumerate(steps) if name == "RUN"
    )
    installs = [text for text in rest["RUN"] if "pip install" in text]
    assert all("--require-hashes" in text or "--no-deps" in text for text in installs)
    assert not re.search(r"curl|wget|apt-get|ADD http|latest", " ".join(text for _, text in steps))
    assert "RAY_AUTH_MODE=token" in rest["ENV"][0]
    assert not re.search(r"TOKEN=|PASSWORD|SECRET", rest["ENV"][0])
    sources = [word for text in rest["COPY"] for word in text.split()[:-1]]
    assert all((ROOT / source.replace("${FLAVOUR}", "cpu")).exists() for source in sources)
