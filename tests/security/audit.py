"""Asks OSV (osv.dev) for known vulnerabilities of the packages in constraints.txt. `./dev audit` runs this.

    python tests/security/audit.py [URL]

Exit code 1 if there are any. If the service cannot be reached, or does not know a vulnerability that it must know, no audit
was made: this says so, with exit code 0. One request; nothing is sent but names and versions.
"""

from __future__ import annotations

import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

SERVICE = "https://api.osv.dev/v1/querybatch"
KNOWN = ("urllib3", "1.26.4")  # has advisories: a service that names none is no service, but a proxy, say
SECONDS = 20
# Advisory → why it does not concern us. An entry goes with the version that mends it.
ACCEPTED: dict[str, str] = {}


def audit(packages: Mapping[str, str], url: str = SERVICE, accepted: Mapping[str, str] = ACCEPTED) -> int:
    """Prints what is known of some packages, name → version, and returns the exit code."""
    asked = [KNOWN, *((name, version.partition("+")[0]) for name, version in packages.items())]  # torch 2.13.0+cpu
    try:
        probe, *found = ask(asked, url)
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as fault:
        print(f"audit: skipped, as {url} gives no answer ({fault})")
        return 0
    if not probe:
        print(f"audit: skipped, as {url} knows no vulnerability of {' '.join(KNOWN)}")
        return 0
    code = 0
    for (name, version), advisories in zip(asked[1:], found, strict=True):
        for advisory in advisories:
            if advisory in accepted:
                print(f"accepted: {name} {version}: {advisory} ({accepted[advisory]})")
            else:
                code = 1
                print(f"{name} {version}: {advisory}, https://osv.dev/vulnerability/{advisory}")
    print(f"audit: {'vulnerabilities' if code else 'no known vulnerability'} in {len(packages)} packages")
    return code


def ask(packages: list[tuple[str, str]], url: str) -> list[list[str]]:
    """Returns the advisories of each (name, version)."""
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages]
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps({"queries": queries}).encode(), headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        results = json.load(answer)["results"]
    if len(results) != len(packages):
        raise ValueError(f"{len(results)} answers to {len(packages)} questions")
    return [[advisory["id"] for advisory in result.get("vulns", [])] for result in results]


def pinned(path: Path) -> dict[str, str]:
    """Reads name → version from a file of constraints."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if "==" in line)


if __name__ == "__main__":
    constraints = Path(__file__).resolve().parents[2] / "constraints.txt"
    raise SystemExit(audit(pinned(constraints), *sys.argv[1:2]))
