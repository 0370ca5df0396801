"""An instance of Sigstore on the loopback interface: authority (Fulcio), logs of certificates and signatures (Rekor), OIDC issuer.

It speaks what the clients speak, with keys of its own, and checks nothing that only a real instance needs to check.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sigstore of the tests")])
OTHER_LEAF = hashlib.sha256(b"\x00an entry of somebody else").digest()


def b64(data: bytes) -> str:
    """Return ``data`` in base64."""
    return base64.b64encode(data).decode()


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key in DER."""
    return key.public_key().public_bytes(DER, SPKI)


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return the signature of ``data``."""
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


class Instance:
    """One instance, with its keys; ``requests`` holds the paths that were asked for."""

    def __init__(self, url: str) -> None:
        self.url, self.requests = url, list[str]()
        self.ca_key, self.ct_key, self.log_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.ca = self._authority()
        self.refuses: set[str] = set()  # paths that are answered with 500
        self.login = "somebody@example.org"  # who logs in with the browser

    def _authority(self) -> x509.Certificate:
        now = datetime.now(timezone.utc)
        key_usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        public = self.ca_key.public_key()
        return (
            x509.CertificateBuilder(NAME, NAME, public, 1, now - timedelta(days=1), now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.ca_key, hashes.SHA256())
        )

    def trust_config(self, path: Path) -> Path:
        """Write the client trust configuration, as clients take it."""
        since = {"start": "2020-01-01T00:00:00Z"}
        service = {"majorApiVersion": 1, "validFor": since, "operator": "tests", "url": self.url}
        root = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log(self.log_key, since)],
            "ctlogs": [self._log(self.ct_key, since)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "tests", "commonName": "tests"},
                    "uri": self.url,
                    "certChain": {"certificates": [{"rawBytes": b64(self.ca.public_bytes(DER))}]},
                    "validFor": since,
                }
            ],
            "timestampAuthorities": [],
        }
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [service],
            "rekorTlogUrls": [service],
            "tsaUrls": [],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        }
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        path.write_text(json.dumps({"mediaType": kind, "trustedRoot": root, "signingConfig": signing}))
        return path

    def _log(self, key: ec.EllipticCurvePrivateKey, since: dict[str, str]) -> dict[str, object]:
        return {
            "baseUrl": self.url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {"rawBytes": b64(spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since},
            "logId": {"keyId": b64(hashlib.sha256(spki(key)).digest())},
        }

    def token(self, identity: str, *, seconds: int = 600, audience: str = "sigstore") -> str:
        """Return an OIDC token for ``identity`` by this instance's issuer."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": audience, "sub": identity, "iat": now - 5, "exp": now + seconds}
        return jwt.encode(claims, "no secret of anybody, and long enough", algorithm="HS256")

    # The authority.

    def certify(self, request: dict[str, Any], token: str) -> dict[str, Any]:
        """Return the answer to a request for a certificate."""
        claims = jwt.decode(token, options={"verify_signature": False})
        csr = x509.load_pem_x509_csr(base64.b64decode(request["certificateSigningRequest"]))
        identity = claims["sub"]
        name = x509.RFC822Name(identity) if "://" not in identity else x509.UniformResourceIdentifier(identity)
        now = datetime.now(timezone.utc)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        ca_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca_key.public_key())
        public = csr.public_key()
        until = now + timedelta(minutes=10)
        builder = (
            x509.CertificateBuilder(NAME, x509.Name([]), public, x509.random_serial_number(), now, until)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(ca_id, critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.UnrecognizedExtension(ISSUER, claims["iss"].encode()), critical=False)
        )
        before = builder.sign(self.ca_key, hashes.SHA256())
        stamps = x509.UnrecognizedExtension(SCT_LIST, self._timestamps(before.tbs_certificate_bytes))
        certificate = builder.add_extension(stamps, critical=False).sign(self.ca_key, hashes.SHA256())
        chain = [each.public_bytes(PEM).decode() for each in (certificate, self.ca)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _timestamps(self, certificate: bytes) -> bytes:
        """Return the list, of RFC 6962, of one timestamp of the log of certificates."""
        when = int(time.time() * 1000)
        entry = hashlib.sha256(spki(self.ca_key)).digest() + len(certificate).to_bytes(3, "big") + certificate
        signature = sign(self.ct_key, struct.pack("!BBQH", 0, 0, when, 1) + entry + b"\x00\x00")
        log = hashlib.sha256(spki(self.ct_key)).digest()
        stamp = b"\x00" + log + struct.pack("!QHBBH", when, 0, 4, 3, len(signature)) + signature
        items = struct.pack("!H", len(stamp)) + stamp
        octets = struct.pack("!H", len(items)) + items
        return b"\x04" + (b"" if len(octets) < 128 else b"\x81") + bytes([len(octets)]) + octets

    # The log of signatures.

    def enter(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a proposed entry: the second of a log of two."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])
        (verifier,) = content["verifiers"]
        spec: Any = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(content["envelope"].encode()).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": verifier}],
        }
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        leaf = hashlib.sha256(b"\x00" + body).digest()
        root = hashlib.sha256(b"\x01" + OTHER_LEAF + leaf).digest()
        key_id = hashlib.sha256(spki(self.log_key)).digest()
        note = f"tests - 1\n2\n{b64(root)}\n"
        checkpoint = f"{note}\n\u2014 tests {b64(key_id[:4] + sign(self.log_key, note.encode()))}\n"
        entry: Any = {"body": b64(body), "integratedTime": int(time.time()), "logID": key_id.hex(), "logIndex": 1}
        promise = b64(sign(self.log_key, rfc8785.dumps(entry)))
        proof: Any = {"logIndex": 1, "rootHash": root.hex(), "treeSize": 2, "hashes": [OTHER_LEAF.hex()]}
        proof["checkpoint"] = checkpoint
        return {"0": {**entry, "verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}}


@contextmanager
def running() -> Iterator[Instance]:
    """Run an instance."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _answer(self, body: bytes) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            instance.requests.append(url.path)
            if url.path in instance.refuses:
                self.send_error(500)
                return
            if url.path == "/auth":  # logged in at once
                back = f"{query['redirect_uri']}?{urllib.parse.urlencode({'code': 'c', 'state': query['state']})}"
                self.send_response(302)
                self.send_header("Location", back)
                self.end_headers()
                return
            answer = self._document(url.path, query, body)
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _document(self, path: str, query: dict[str, str], body: bytes) -> dict[str, Any]:
            if path == "/.well-known/openid-configuration":
                return {f"{name}_endpoint": f"{instance.url}/{end}" for name, end in ENDPOINTS.items()}
            if path == "/token":
                return {"access_token": instance.token(instance.login)}
            if path == "/ci-token":
                return {"value": instance.token("https://ci.example.org/a/workflow", audience=query["audience"])}
            if path == "/api/v2/signingCert":
                return instance.certify(json.loads(body), self.headers["Authorization"].removeprefix("Bearer "))
            assert path == "/api/v1/log/entries", path
            return instance.enter(json.loads(body))

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        instance = Instance(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield instance
        finally:
            server.shutdown()


ENDPOINTS = {"authorization": "auth", "token": "token"}
