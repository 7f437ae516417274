"""Keys of a control plane on loopback: one authority, an administrator, servers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster.pki import (
    Certificate,
    kubeconfig_text,
    make_authority,
    make_service_account_keys,
    sign,
)

CONTEXT = "duckmesh-controlplane"


@dataclass(frozen=True, slots=True)
class Keys:
    """A folder of keys and certificates."""

    folder: Path

    def make(self) -> None:
        """Write those of the authority, the API server, the administrator and of service account tokens."""
        self.folder.mkdir(parents=True)
        make_authority(self.folder, "ca", "duckmesh-controlplane-ca")
        self.sign_server("apiserver")
        subject = "/O=system:masters/CN=admin"
        sign(self.folder, Certificate(name="admin", subject=subject, usage="clientAuth"))
        make_service_account_keys(self.folder)

    def sign_server(self, name: str) -> None:
        """A certificate of a server on loopback, unless it is there."""
        if not (self.folder / f"{name}.crt").exists():
            names = ("DNS:localhost", "IP:127.0.0.1")
            server = Certificate(name=name, subject=f"/CN={name}", usage="serverAuth", names=names)
            sign(self.folder, server)

    def pair(self, name: str) -> tuple[Path, Path]:
        """Certificate and key."""
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def client_tls(self) -> ssl.SSLContext:
        """What the administrator connects with."""
        context = ssl.create_default_context(cafile=self.folder / "ca.crt")
        context.load_cert_chain(*self.pair("admin"))
        return context

    def write_kubeconfig(self, path: Path, server: str) -> None:
        """The administrator's, to any server that the authority signed for."""
        cert, key = self.pair("admin")
        text = kubeconfig_text(
            context=CONTEXT,
            server=server,
            user="admin",
            ca=(self.folder / "ca.crt").read_text(),
            cert=cert.read_text(),
            key=key.read_text(),
        )
        path.touch(0o600)
        path.write_text(text)
