from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from duckmesh_operator.errors import Invalid
from duckmesh_operator.names import (
    ANNOTATION_DIGEST,
    MIGRATION,
    child,
    kind_of,
    lake_name,
    migrate_job,
)
from duckmesh_operator.settings import Caps, Egress, Profile, Settings, StoreConfig
from duckmesh_operator.specs.context import build_context, seal
from duckmesh_operator.specs.deployment import build_deployment
from duckmesh_operator.specs.disruption import build_disruption_budget
from duckmesh_operator.specs.job import build_migrate_job
from duckmesh_operator.specs.networkpolicy import build_network_policy, is_restricted
from duckmesh_operator.specs.pod import build_ingest_template, build_query_template
from duckmesh_operator.specs.revision import (
    Revision,
    build_inputs,
    build_revision,
    is_current,
    is_outdated,
    latest,
    next_revision,
)
from duckmesh_operator.specs.secret import (
    build_keys,
    build_secret,
    hash_key,
    read_password,
    read_secret,
)
from duckmesh_operator.specs.service import build_service, endpoint
from duckmesh_operator.specs.tables import build_tables, tables_digest
from tests.tenants import UID, make_context, make_settings, make_tenant

OWNER = {
    "apiVersion": "duckmesh.io/v1alpha1",
    "kind": "Tenant",
    "name": "acme",
    "uid": UID,
    "controller": True,
}


def labels(component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "duckmesh",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": "acme",
        "app.kubernetes.io/managed-by": "duckmesh-operator",
        "duckmesh.io/tenant": "acme",
        "duckmesh.io/tenant-uid": UID,
    }


def selector(component: str) -> dict[str, Any]:
    return {
        "matchLabels": {
            "app.kubernetes.io/component": component,
            "duckmesh.io/tenant": "acme",
            "duckmesh.io/tenant-uid": UID,
        }
    }


def head(kind: str, api_version: str, name: str, component: str) -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "team",
            "labels": labels(component),
            "ownerReferences": [OWNER],
        },
    }


def ports(*numbers: int, protocol: str = "TCP") -> list[dict[str, Any]]:
    return [{"port": number, "protocol": protocol} for number in numbers]


def test_a_service_in_full() -> None:
    assert build_service(make_tenant(), "ingest") == head(
        "Service", "v1", "acme-ingest", "ingest"
    ) | {
        "spec": {
            "type": "ClusterIP",
            "selector": selector("ingest")["matchLabels"],
            "ports": [
                {"name": "api", "port": 8080, "targetPort": "api", "protocol": "TCP"},
                {"name": "metrics", "port": 9090, "targetPort": "metrics", "protocol": "TCP"},
            ],
        }
    }
    assert endpoint(make_tenant(), "query") == "http://acme-query.team.svc:8080"


def test_declared_tables_in_full() -> None:
    columns = [
        {"name": "id", "type": "BIGINT", "nullable": True},  # as the schema fills it in
        {"name": "v", "type": "VARCHAR", "default": "-"},
    ]
    spec = {"tables": [{"name": "t", "columns": columns, "primaryKey": ["id"], "sortBy": ["v"]}]}

    made: Any = build_tables(make_tenant(spec))

    text = made["data"].pop("tables.json")
    assert made == head("ConfigMap", "v1", "acme-tables", "ingest") | {"data": {}}
    assert json.loads(text) == {
        "tables": [
            {
                "name": "t",
                "columns": [
                    {"name": "id", "type": "BIGINT", "nullable": False},
                    {"name": "v", "type": "VARCHAR", "nullable": True, "default": "-"},
                ],
                "primary_key": ["id"],
                "partition_by": [],
                "sort_by": ["v"],
            }
        ]
    }
    assert tables_digest(make_tenant(spec)) == hashlib.sha256(text.encode()).hexdigest()
    assert tables_digest(make_tenant()) != tables_digest(make_tenant(spec))


def test_a_deployment_in_full() -> None:
    template: Any = {"spec": {"containers": []}}
    inputs: Any = {"version": "0.1.0"}
    revision = Revision(name="acme-query-4", number=4, inputs=inputs, template=template)

    made: Any = build_deployment(make_tenant(), "query", replicas=3, revision=revision)

    assert made["metadata"].pop("annotations") == {"duckmesh.io/revision": "acme-query-4"}
    assert made["metadata"]["labels"].pop("app.kubernetes.io/version") == "0.1.0"
    assert made == head("Deployment", "apps/v1", "acme-query", "query") | {
        "spec": {
            "replicas": 3,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": 300,
            "selector": selector("query"),
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": template,
        }
    }


def test_a_disruption_budget_in_full() -> None:
    assert build_disruption_budget(make_tenant(), "ingest") == head(
        "PodDisruptionBudget", "policy/v1", "acme-ingest", "ingest"
    ) | {
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": selector("ingest"),
        }
    }


def test_a_network_policy_in_full() -> None:
    context = make_context()

    assert is_restricted(context)
    assert build_network_policy(context, "ingest") == head(
        "NetworkPolicy", "networking.k8s.io/v1", "acme-ingest", "ingest"
    ) | {
        "spec": {
            "podSelector": selector("ingest"),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": ports(8080, 9090)}],
            "egress": [
                {"ports": [*ports(53, 5353, protocol="UDP"), *ports(53, 5353)]},
                {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": ports(5432)},
                {"to": [{"podSelector": {"matchLabels": {"app": "s3"}}}], "ports": ports(8333)},
                {
                    "to": [
                        {"podSelector": selector("ingest")},
                        {"podSelector": selector("query")},
                    ],
                    "ports": ports(8080),
                },
            ],
        }
    }


def test_query_pods_may_not_go_to_siblings() -> None:
    policy: Any = build_network_policy(make_context(), "query")

    assert len(policy["spec"]["egress"]) == 3


def test_runs_of_compactors_serve_nobody_and_reach_catalog_and_store_only() -> None:
    policy: Any = build_network_policy(make_context(), "compact")

    assert policy["metadata"]["name"] == "acme-compact"
    assert policy["spec"]["podSelector"] == selector("compact")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == []
    assert len(policy["spec"]["egress"]) == 3


def test_without_a_place_the_ports_are_open_anywhere() -> None:
    store = make_settings().stores["default"]
    context = make_context(
        stores={
            "default": StoreConfig(
                name="default",
                bucket="b",
                secret_dir=store.secret_dir,
                egress=Egress(ports=(9000,)),
            )
        }
    )

    policy: Any = build_network_policy(context, "query")

    assert not is_restricted(context)
    assert policy["spec"]["egress"][2] == {"ports": ports(9000)}


def test_an_ingest_template_in_full() -> None:
    def env(name: str, value: str) -> dict[str, str]:
        return {"name": f"DUCKMESH_{name}", "value": value}

    def field(name: str, path: str) -> dict[str, Any]:
        source = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
        return {"name": f"DUCKMESH_{name}", "valueFrom": source}

    def probe(path: str, period: int, failures: int) -> dict[str, Any]:
        return {
            "httpGet": {"path": path, "port": "metrics", "scheme": "HTTP"},
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
            "successThreshold": 1,
        }

    parts = ("writer", "maintenance", "store", "auth")

    assert build_ingest_template(make_context()) == {
        "metadata": {"labels": labels("ingest")},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 34,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "ingest",
                    "image": "localhost/duckmesh-runtime:0.1.0",
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["serve", "ingest"],
                    "env": [
                        env("TENANT", "team/acme"),
                        env("LAKE", "lake_0123456789ab4cde"),
                        env("DATA_URL", "s3://lakes/team/acme/"),
                        env("S3_ENDPOINT", "http://s3.example:8333"),
                        env("S3_REGION", "us-east-1"),
                        env("WRITER_DIR", "/etc/duckmesh/writer"),
                        env("MAINTENANCE_DIR", "/etc/duckmesh/maintenance"),
                        env("STORE_DIR", "/etc/duckmesh/store"),
                        env("AUTH_DIR", "/etc/duckmesh/auth"),
                        field("POD_NAME", "metadata.name"),
                        field("POD_ADDRESS", "status.podIP"),
                        env("QUERY_URL", "http://acme-query:8080"),
                        env("BATCH_MIN_INTERVAL_MS", "100"),
                        env("BATCH_MAX_DELAY_MS", "200"),
                        env("BATCH_MAX_ROWS", "500000"),
                        env("BATCH_MAX_BYTES", "67108864"),
                        env("PENDING_BYTES", "1073741824"),
                        env("REQUESTS_PER_SECOND", "0"),
                        env("FRESHNESS_TARGET_MS", "5000"),
                        env("SNAPSHOT_KEEP_FOR_S", "604800"),
                        env("SNAPSHOT_KEEP_LAST", "10"),
                        env("COMPACTION_ENABLED", "true"),
                        env("COMPACTION_SMALL_FILES", "16"),
                        env("TABLES_FILE", "/etc/duckmesh/tables/tables.json"),
                        env("DRAIN_S", "20"),
                    ],
                    "resources": {
                        "requests": {"cpu": "100m", "memory": "256Mi"},
                        "limits": {"cpu": "2", "memory": "1Gi"},
                    },
                    "volumeMounts": [
                        *(
                            {"name": part, "mountPath": f"/etc/duckmesh/{part}", "readOnly": True}
                            for part in (*parts, "tables")
                        ),
                        {"name": "run", "mountPath": "/run/duckmesh"},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "ports": [
                        {"name": "api", "containerPort": 8080, "protocol": "TCP"},
                        {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
                    ],
                    "startupProbe": probe("/v1/ready", 1, 180),
                    "readinessProbe": probe("/v1/ready", 2, 2),
                    "livenessProbe": probe("/v1/health", 10, 3),
                    "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                }
            ],
            "volumes": [
                *(
                    {"name": part, "secret": {"secretName": f"acme-{part}", "defaultMode": 0o440}}
                    for part in parts
                ),
                {"name": "tables", "configMap": {"name": "acme-tables", "defaultMode": 0o440}},
                {"name": "run", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            ],
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": key,
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": selector("ingest"),
                }
                for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
            ],
        },
    }


def test_a_profile_places_pods_and_its_constraints_get_our_selector() -> None:
    placement = {
        "nodeSelector": {"disk": "ssd"},
        "priorityClassName": "high",
        "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone"}],
    }
    context = make_context(
        profiles={"default": Profile(name="default", placement=placement, digest="x")}
    )

    spec: Any = build_query_template(context)["spec"]

    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert spec["priorityClassName"] == "high"
    assert spec["topologySpreadConstraints"] == [
        {"maxSkew": 2, "topologyKey": "zone", "labelSelector": selector("query")}
    ]


def test_allowed_labels_reach_the_pods_and_never_win_over_ours() -> None:
    context = make_context(
        {"labels": {"team.example/cost": "7", "duckmesh.io/tenant": "other"}},
        allowed_labels=("team.example/cost", "duckmesh.io/tenant"),
    )

    metadata: Any = build_ingest_template(context)["metadata"]

    assert metadata["labels"]["team.example/cost"] == "7"
    assert metadata["labels"]["duckmesh.io/tenant"] == "acme"


@pytest.mark.parametrize(
    ("timeout", "drain_s"),
    [("1s", 20), ("30s", 34), ("2m", 134), pytest.param("1h", 300, id="bounded")],
)
def test_a_query_may_end_before_its_pod_does(timeout: str, drain_s: int) -> None:
    spec: Any = build_query_template(
        make_context({"query": {"limits": {"timeout": timeout}}, "snapshots": {"keepFor": "48h"}})
    )["spec"]

    assert spec["terminationGracePeriodSeconds"] == 2 + drain_s + 12
    env = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert env["DUCKMESH_DRAIN_S"] == str(drain_s)


def test_the_sandbox_outlives_the_container_in_front_of_it() -> None:
    """Kubernetes ends a sidecar after the containers: a statement that runs is answered."""
    spec: Any = build_query_template(make_context())["spec"]

    assert [one["name"] for one in spec["containers"]] == ["query"]
    (sandbox,) = spec["initContainers"]
    assert (sandbox["name"], sandbox["restartPolicy"]) == ("sandbox", "Always")


def test_a_migrate_job_lies_in_the_operators_namespace_and_ends() -> None:
    job: Any = build_migrate_job(make_context())

    assert job["metadata"] == {
        "name": f"duckmesh-migrate-0123456789ab4cde-{MIGRATION}",
        "namespace": "duckmesh-system",
        "labels": labels("migrate") | {"duckmesh.io/tenant-namespace": "team"},
    }
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["activeDeadlineSeconds"] == 600


def test_builders_share_no_nested_dict() -> None:
    context = make_context()
    first: Any = build_ingest_template(context)
    first["spec"]["containers"][0]["env"].clear()
    first["metadata"]["labels"].clear()

    assert build_ingest_template(context)["metadata"] == {"labels": labels("ingest")}


def test_a_sealed_manifest_carries_a_digest_of_itself() -> None:
    made = build_service(make_tenant(), "ingest")
    sealed: Any = seal(made)

    assert ANNOTATION_DIGEST in sealed["metadata"]["annotations"]
    assert seal(made) == sealed
    assert "annotations" not in made["metadata"]  # type: ignore[operator]


# -------------------------------------------------------------------- sizes and names


def test_figures_are_lowered_to_the_caps() -> None:
    small = Profile(name="default", ingest=Caps(cpu="500m", memory="128Mi"), digest="x")
    context = make_context({"query": {"limits": {"concurrency": 1}}}, profiles={"default": small})

    assert context.ingest.cpu_limit == 500
    assert context.ingest.memory_limit == 128 * 2**20
    assert context.ingest.memory_request == 128 * 2**20
    assert context.sandbox.memory_limit == (384 + 256) * 2**20


def test_a_request_above_the_usual_limit_raises_the_limit() -> None:
    resources = {"requests": {"memory": "1536Mi"}}

    context = make_context({"ingest": {"resources": resources}})

    assert context.ingest.memory_limit == 1536 * 2**20


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"storage": {"name": "x"}}, "spec.storage.name: x is not configured"),
        ({"ingest": {"resources": {"requests": {"cpu": "3"}}}}, "requests.cpu is above 2"),
        ({"annotations": {"a/b": "c"}}, "spec.annotations: the key a/b"),
        ({"query": {"limits": {"concurrency": 9}}}, "spec.query.limits: 9 queries of 384Mi"),
    ],
)
def test_what_the_configuration_does_not_allow_is_named(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as caught:
        make_context(spec)

    assert named in str(caught.value)


def _context(settings: Settings, **spec: Any) -> Any:
    return build_context(make_tenant(spec), settings, pinned_version="", postgres_ports=(5432,))


def test_another_version_is_another_tag() -> None:
    context = _context(make_settings(), version="0.3.0")

    assert context.images.runtime == "localhost/duckmesh-runtime:0.3.0"
    assert context.images.sandbox == "localhost/duckmesh-sandbox:0.3.0"


def test_a_registry_with_a_port_keeps_it() -> None:
    settings = make_settings(runtime_image="reg:5000/runtime", sandbox_image="reg:5000/sand:1")

    images = _context(settings, version="0.3.0").images

    assert (images.runtime, images.sandbox) == ("reg:5000/runtime:0.3.0", "reg:5000/sand:0.3.0")


def test_images_by_digest_have_one_version() -> None:
    settings = make_settings(runtime_image="localhost/x@sha256:00")

    with pytest.raises(Invalid, match="pinned by digest"):
        _context(settings, version="0.3.0")


def test_child_names_stay_below_the_limit_of_kubernetes() -> None:
    assert len(child("t" * 40, "maintenance")) <= 63
    assert len(migrate_job(lake_name(UID), 9999)) <= 63


def test_paths_follow_the_api_servers_scheme() -> None:
    kind = kind_of({"kind": "Service"})

    assert kind.path("team", "a", "status") == "/api/v1/namespaces/team/services/a/status"
    assert kind_of({"kind": "Tenant"}).path(None) == "/apis/duckmesh.io/v1alpha1/tenants"


# -------------------------------------------------------------------- revisions


def revise(spec: dict[str, Any], generation: int, **settings: Any) -> dict[str, Any]:
    tenant = make_tenant(spec, generation=generation)
    context = build_context(
        tenant, make_settings(**settings), pinned_version="", postgres_ports=(5432,)
    )
    return build_inputs(context, "ingest")


BASE = {"ingest": {"replicas": 2, "batch": {"maxRows": 5}}, "freshness": {"target": "5s"}}


@pytest.mark.parametrize(
    ("spec", "generation", "current"),
    [
        pytest.param(BASE | {"newDefault": 1}, 1, True, id="crd-upgrade-fills-in-a-default"),
        pytest.param(BASE | {"query": {"replicas": 9}}, 2, True, id="the-other-worker"),
        pytest.param(BASE | {"suspend": True, "paused": True}, 2, True, id="suspend"),
        pytest.param(
            {"ingest": {"replicas": 7, "batch": {"maxRows": 5}}, "freshness": {"target": "5s"}},
            2,
            True,
            id="replicas",
        ),
        pytest.param(
            BASE | {"freshness": {"target": "5s", "sustainedFor": "9s"}}, 2, True, id="sustained"
        ),
        pytest.param(BASE | {"freshness": {"target": "6s"}}, 2, False, id="target"),
        pytest.param(BASE | {"snapshots": {"keepFor": "48h"}}, 2, False, id="keepFor"),
        pytest.param(BASE | {"snapshots": {"keepLast": 3}}, 2, False, id="keepLast"),
        pytest.param(BASE | {"snapshots": {"maxAge": "5m"}}, 2, True, id="maxAge"),
        pytest.param(BASE | {"compaction": {"enabled": False}}, 2, False, id="enabled"),
        pytest.param(BASE | {"compaction": {"smallFiles": 9}}, 2, False, id="smallFiles"),
        pytest.param(BASE | {"ingest": {"batch": {"maxRows": 6}}}, 2, False, id="batch"),
    ],
)
def test_a_worker_is_rolled_only_by_what_is_in_its_pods(
    spec: dict[str, Any], generation: int, current: bool
) -> None:
    context = build_context(
        make_tenant(BASE), make_settings(), pinned_version="", postgres_ports=(5432,)
    )
    found = next_revision(context, "ingest", None, template={"spec": {}}, inputs=revise(BASE, 1))

    assert is_current(found, revise(spec, generation)) is current


def test_a_changed_profile_or_version_rolls_every_worker() -> None:
    context = make_context(BASE)
    found = next_revision(context, "ingest", None, template={"spec": {}}, inputs=revise(BASE, 1))
    profile = {"default": Profile(name="default", digest="other")}

    assert not is_current(found, revise(BASE, 1, profiles=profile))
    assert not is_current(found, revise(BASE | {"version": "0.2.0"}, 1))


def test_a_default_that_a_newer_crd_fills_in_outdates_a_revision_once() -> None:
    context = make_context(BASE)
    found = next_revision(context, "ingest", None, template={"spec": {}}, inputs=revise(BASE, 1))
    filled = BASE | {"newDefault": 1}

    again = next_revision(
        context, "ingest", found, template=found.template, inputs=revise(filled, 1)
    )

    assert not is_outdated(found, revise(BASE, 1))
    assert is_outdated(found, revise(filled, 1))
    assert not is_outdated(again, revise(filled, 1))
    assert is_current(again, revise(filled | {"suspend": True}, 2))
    assert not is_current(found, revise(filled | {"suspend": True}, 2))


def test_what_workers_are_compared_by_is_for_ever() -> None:
    """A change of these texts would roll every worker of every installation at its next operator upgrade."""
    assert revise({}, 1) == {
        "version": "0.1.0",
        "spec": "d011e17a0d334b48",
        "platform": "447f202f228c25ab",
        "generation": 1,
        "snapshots": "95cb9b4f84ceff13",
        "compaction": "95cb9b4f84ceff13",
    }


def test_a_revision_of_the_first_release_holds_and_is_made_whole() -> None:
    """It says nothing of what later releases look at, and neither does their operator when it is back."""
    context = make_context(BASE)
    later = ("snapshots", "compaction")
    first = {key: value for key, value in revise(BASE, 1).items() if key not in later}
    found = next_revision(context, "ingest", None, template={"spec": {}}, inputs=first)
    changed = revise(BASE | {"suspend": True}, 2)

    whole = next_revision(context, "ingest", found, template=found.template, inputs=changed)

    assert is_current(found, changed)
    assert is_outdated(found, changed)
    assert not is_outdated(whole, changed)
    assert first.items() <= revise(BASE, 1).items()
    assert not is_current(whole, revise(BASE | {"snapshots": {"keepFor": "48h"}}, 3))
    assert not is_current(found, revise(BASE | {"ingest": {"batch": {"maxRows": 6}}}, 2))


def test_the_latest_revision_of_a_worker_is_found() -> None:
    tenant = make_tenant()
    made = [
        build_revision(
            tenant,
            part,
            Revision(
                name=f"acme-{part}-{number}", number=number, inputs={}, template={"n": number}
            ),
        )
        for part, number in (("ingest", 1), ("ingest", 10), ("query", 11))
    ]
    made[0]["revision"] = 99  # what someone wrote over it says nothing

    found = latest(made, "ingest")

    assert found is not None
    assert (found.number, found.name, found.template) == (10, "acme-ingest-10", {"n": 10})
    assert latest([], "ingest") is None


# -------------------------------------------------------------------- secrets


def test_a_secret_reads_back_what_was_put_in() -> None:
    made = build_secret(make_tenant(), "store", {"access-key-id": "a", "secret-access-key": "ä"})

    assert read_secret(made, "secret-access-key") == "ä"
    assert read_secret(made, "nothing") == ""
    assert read_secret({"data": {"x": "/w=="}}, "x") == ""


@pytest.mark.parametrize(
    ("dsn", "password"),
    [
        ("postgresql://a:b%40@h/d", "b@"),
        ("postgresql://h/d", ""),
        ("", ""),
        ("postgresql://[", ""),
    ],
)
def test_a_password_is_read_from_a_dsn(dsn: str, password: str) -> None:
    assert read_password(dsn) == password


def test_keys_of_people_survive_a_new_admin_key() -> None:
    own = '[{"id": "bob", "hash": "00", "roles": ["query_reader"]}]'

    first = build_keys(own, pepper="p", key="k1")
    second = build_keys(first, pepper="p", key="k2")

    assert '"bob"' in second
    assert hash_key("p", "k1") not in second
    assert build_keys(second, pepper="p", key="k2") == second
    assert "bob" not in build_keys("not json", pepper="p", key="k")
    assert "admin" in build_keys('{"a": 1}', pepper="p", key="k")
