"""What helm makes of the chart, and the golden files of it.

`python -m tests.e2e.charts` writes the golden files anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from tests.e2e.cluster.settings import Settings as Cluster
from tests.e2e.product import ROOT, SYSTEM

CHART: Final = ROOT / "charts" / "duckmesh"
GOLDEN: Final = Path(__file__).parent / "golden"
Manifest = dict[str, Any]

TRIAL: Final = ("devservices.enabled=true",)
NAMESPACED: Final = ("watchNamespaces={shop,team}",)
#: Sets of values that stand for the ways to install, each with the files that go before them.
WAYS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "default": ((), ()),
    "trial": ((), (*TRIAL, "devservices.persistence.keep=true")),
    "cluster-part": (("values-cluster.yaml",), ()),
    "namespaced-part": (("values-namespaced.yaml",), NAMESPACED),
    "everything": (
        (),
        (
            *("operator.replicas=2", "priorityClass.install=true", "podMonitor.install=true"),
            *("podMonitor.labels.release=prometheus", "images.pullSecrets={registry}"),
            *("catalogs[0].name=eu", "catalogs[0].secretName=eu-catalog"),
            *("catalogs[0].egress.cidrs={10.0.0.0/8}", "catalogs[0].egress.ports={6432}"),
            *(
                "networkPolicy.apiServer.cidrs={10.1.0.1/32}",
                "networkPolicy.apiServer.ports={6443}",
            ),
            "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=watch",
            *("operator.nodeSelector.disk=ssd", "operator.tolerations[0].operator=Exists"),
        ),
    ),
}


def find_helm() -> str | None:
    """Path of helm: the machine's own, or the one that comes with the cluster."""
    built = Cluster.from_env(os.environ).bin / "helm"
    return shutil.which("helm") or (str(built) if built.exists() else None)


def render(
    helm: str, *sets: str, files: tuple[str, ...] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`helm template` of the chart with these values."""
    options = [f"--values={CHART / file}" for file in files] + [f"--set={item}" for item in sets]
    return subprocess.run(
        [helm, "template", "duckmesh", str(CHART), "-n", SYSTEM, *options],
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
    )


def manifests(helm: str, *sets: str, files: tuple[str, ...] = ()) -> list[Manifest]:
    """All objects of the chart with these values."""
    return [doc for doc in yaml.safe_load_all(render(helm, *sets, files=files).stdout) if doc]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stay readable, and are compared line by line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def golden(helm: str, way: str) -> str:
    """What a golden file has to hold.

    Left out is what has a source and tests of its own: resources, alert rules, the uninstall hook, the operator's
    rights. Secrets and digests are masked.
    """
    files, sets = WAYS[way]
    found = [
        _masked(one)
        for one in manifests(helm, *sets, files=files)
        if one["kind"] not in ("CustomResourceDefinition", "PrometheusRule")
        and "helm.sh/hook" not in one["metadata"].get("annotations", {})
    ]
    found.sort(key=lambda one: (one["kind"], one["metadata"]["name"], _namespace(one)))
    return yaml.dump_all(found, Dumper=_Dumper, sort_keys=True, width=120)


def _namespace(one: Manifest) -> str:
    return str(one["metadata"].get("namespace", ""))


def _masked(one: Manifest) -> Manifest:
    name = one["metadata"]["name"]
    if one["kind"] == "Secret":
        return one | {"stringData": dict.fromkeys(one["stringData"], "(secret)")}
    if one["kind"] in ("Role", "ClusterRole") and name.startswith("duckmesh-operator"):
        return one | {"rules": "(charts/duckmesh/rbac)"}
    if one["kind"] == "Deployment":
        one["spec"]["template"]["metadata"]["annotations"]["duckmesh.io/config"] = "(digest)"
    return one


def pod_templates(found: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod that the manifests lead to: name and template."""
    for one in found:
        spec = one.get("spec", {})
        if one["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], {"metadata": one["metadata"], "spec": spec}
        elif "template" in spec and "containers" in spec["template"].get("spec", {}):
            yield one["metadata"]["name"], spec["template"]


def main() -> int:
    """Write the golden files."""
    helm = find_helm()
    if helm is None:
        print("there is no helm: `make cluster` builds one", file=sys.stderr)
        return 1
    GOLDEN.mkdir(exist_ok=True)
    for way in WAYS:
        (GOLDEN / f"{way}.yaml").write_text(golden(helm, way), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
