"""Certificates and kubeconfigs of the native node: elliptic-curve keys, valid ten years."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.cluster.settings import Settings
from tests.e2e.cluster.shell import run

_EC: Final = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
_DAYS: Final = "3650"

# Who gets a kubeconfig: certificate name -> file `<name>.kubeconfig`.
CLIENTS: Final = (
    "admin",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "node-agent",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate to sign.

    Attributes:
        name: file name without suffix.
        subject: in openssl's form, such as /O=group/CN=user.
        usage: clientAuth or serverAuth.
        ca: name of the signing authority.
        names: subject alternative names, in openssl's form.
    """

    name: str
    subject: str
    usage: str
    ca: str = "ca"
    names: tuple[str, ...] = ()

    def extensions(self) -> str:
        """The certificate's extensions in openssl's configuration format."""
        lines = ["keyUsage=critical,digitalSignature", f"extendedKeyUsage={self.usage}"]
        if self.names:
            lines.append(f"subjectAltName={','.join(self.names)}")
        return "\n".join(lines) + "\n"


def certificates(settings: Settings) -> tuple[Certificate, ...]:
    """List the certificates of one node; users and groups are those Kubernetes expects."""
    api = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", settings.node)
    api_names = [f"DNS:{name}" for name in (*api, "kubernetes.default.svc.cluster.local")]
    api_names += [f"IP:{ip}" for ip in ("127.0.0.1", settings.node_ip, settings.api_service_ip)]
    kubelet_names = (f"DNS:{settings.node}", f"IP:{settings.node_ip}", "IP:127.0.0.1")

    def client(name: str, subject: str, ca: str = "ca") -> Certificate:
        return Certificate(name=name, subject=subject, usage="clientAuth", ca=ca)

    def server(name: str, subject: str, names: tuple[str, ...]) -> Certificate:
        return Certificate(name=name, subject=subject, usage="serverAuth", names=names)

    return (
        server("apiserver", "/CN=kube-apiserver", tuple(api_names)),
        server("kubelet-server", f"/CN={settings.node}", kubelet_names),
        client("apiserver-kubelet", "/O=duckmesh:kubelet-admins/CN=kube-apiserver-kubelet-client"),
        client("front", "/CN=front-proxy", ca="front-ca"),
        client("admin", "/O=system:masters/CN=admin"),
        client("kube-controller-manager", "/CN=system:kube-controller-manager"),
        client("kube-scheduler", "/CN=system:kube-scheduler"),
        client("kube-proxy", "/CN=system:kube-proxy"),
        client("kubelet", f"/O=system:nodes/CN=system:node:{settings.node}"),
        client("node-agent", "/CN=duckmesh:node-agent"),
    )


def kubeconfig_text(*, context: str, server: str, user: str, ca: str, cert: str, key: str) -> str:
    """Build a kubeconfig as JSON, which every YAML reader takes.

    Args:
        context: name of the cluster and the context.
        server: address of the API server.
        user: name of the user entry.
        ca: PEM text of the authority's certificate.
        cert: PEM text of the user's certificate.
        key: PEM text of the user's key.
    """
    ca_data, cert_data, key_data = (base64.b64encode(x.encode()).decode() for x in (ca, cert, key))
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "clusters": [
            {
                "name": context,
                "cluster": {"server": server, "certificate-authority-data": ca_data},
            }
        ],
        "users": [
            {
                "name": user,
                "user": {"client-certificate-data": cert_data, "client-key-data": key_data},
            }
        ],
        "contexts": [{"name": context, "context": {"cluster": context, "user": user}}],
    }
    return json.dumps(config, indent=2) + "\n"


def ensure_pki(settings: Settings) -> None:
    """Write keys, certificates and kubeconfigs, unless an earlier run wrote all of them."""
    if settings.kubeconfig.exists():  # written last
        return
    folder = settings.state / "pki"
    folder.mkdir(parents=True, exist_ok=True)
    make_authority(folder, "ca", "duckmesh-cluster-ca")
    make_authority(folder, "front-ca", "duckmesh-front-proxy-ca")
    for certificate in certificates(settings):
        sign(folder, certificate)
    make_service_account_keys(folder)
    for key in folder.glob("*.key"):
        key.chmod(0o600)
    for name in reversed(CLIENTS):
        text = kubeconfig_text(
            context=settings.name,
            server=f"https://{settings.node_ip}:6443",
            user=name,
            ca=(folder / "ca.crt").read_text(),
            cert=(folder / f"{name}.crt").read_text(),
            key=(folder / f"{name}.key").read_text(),
        )
        path = settings.state / f"{name}.kubeconfig"
        path.touch(0o600)
        path.write_text(text)


def make_authority(folder: Path, name: str, common_name: str) -> None:
    """Write `<name>.crt` and `<name>.key` of a signing authority into a folder."""
    extensions = [
        "basicConstraints=critical,CA:TRUE",
        "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
    ]
    added: list[str | Path] = [word for extension in extensions for word in ("-addext", extension)]
    files: list[str | Path] = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
    subject = ["-days", _DAYS, "-subj", f"/CN={common_name}"]
    run(["openssl", "req", "-x509", "-newkey", *_EC, *subject, *added, *files])


def sign(folder: Path, certificate: Certificate) -> None:
    """Write a certificate and its key into the folder of its authority."""
    request, extensions = folder / f"{certificate.name}.csr", folder / f"{certificate.name}.ext"
    extensions.write_text(certificate.extensions())
    key: list[str | Path] = ["-keyout", folder / f"{certificate.name}.key", "-out", request]
    run(["openssl", "req", "-newkey", *_EC, "-subj", certificate.subject, *key])
    authority: list[str | Path] = [
        "-CA",
        folder / f"{certificate.ca}.crt",
        "-CAkey",
        folder / f"{certificate.ca}.key",
    ]
    result: list[str | Path] = [
        "-days",
        _DAYS,
        "-extfile",
        extensions,
        "-out",
        folder / f"{certificate.name}.crt",
    ]
    run(["openssl", "x509", "-req", "-in", request, *authority, "-CAcreateserial", *result])
    request.unlink()
    extensions.unlink()


def make_service_account_keys(folder: Path) -> None:
    """Write `sa.key` and `sa.pub`: RSA, because readers of service account tokens know no other kind."""
    private, public = folder / "sa.key", folder / "sa.pub"
    options = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    run(["openssl", "genpkey", *options, "-out", private])
    run(["openssl", "pkey", "-in", private, "-pubout", "-out", public])
