"""Write requirements-cpu.txt and requirements-gpu.txt: exact versions with hashes for the container.

    python cluster/container/requirements.py [PIP OPTION ...]      # for example --extra-index-url URL

pip resolves the package with its extras under constraints.txt and reports each file's SHA-256. The files are those of
the Python and platform that run this: Python 3.11 on Linux x86_64, as in the Containerfile. The two lists differ in
torch: the CPU build (its index: CONTRIBUTING.md), and PyPI's, which brings CUDA.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OWN = "gnnmr-dist"
HEADER = """# Written by cluster/container/requirements.py for Python 3.11, Linux x86_64, torch for {build}.
# Install with `pip install --require-hashes -r`: a file that is not the one named here is refused.
"""


def torch_version(constraints: str) -> str:
    """The version of torch that constraints.txt pins."""
    return next(
        line.split("==")[1].strip() for line in constraints.splitlines() if line.startswith("torch==")
    )


def resolve(requirements: Iterable[str], options: Iterable[str]) -> dict[str, Any]:
    """pip's report of what it would install into an empty environment; raises CalledProcessError where it cannot."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--dry-run",
        ]
        command += ["--ignore-installed", "--no-build-isolation", "--only-binary=:all:", f"--report={report}"]
        command += [f"--constraint={ROOT / 'constraints.txt'}", *options, *requirements]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def lines(report: Mapping[str, Any]) -> list[str]:
    """One line per distribution, ``name==version --hash=sha256:...``, sorted; the package itself is left out."""
    found = []
    for item in report["install"]:
        name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
        if name != OWN:
            digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
            found.append(f"{name}=={version} --hash=sha256:{digest}")
    return sorted(found)


def main(options: list[str]) -> None:
    """Write both lists, then have pip check them: every file has the hash that is written down."""
    torch = torch_version((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for build, version in (("cpu", f"{torch}+cpu"), ("gpu", torch)):
        report = resolve([f"{ROOT}[cluster,approximate]", f"torch==={version}"], options)
        file = Path(__file__).with_name(f"requirements-{build}.txt")
        file.write_text(
            HEADER.format(build=build.upper()) + "\n".join(lines(report)) + "\n", encoding="utf-8"
        )
        resolve(["--require-hashes", f"--requirement={file}"], options)
        print(f"{file.name}: {len(report['install']) - 1} distributions")


if __name__ == "__main__":
    main(sys.argv[1:])
