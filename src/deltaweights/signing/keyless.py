"""Keyless signatures of Sigstore, by its library; the only module that imports it, so it is imported only to sign or verify.

The library asks an authority for a certificate that names who signs, signs with a key that it then forgets, and has the signature
entered in a public log. Whoever verifies needs the keys of both (the trust configuration), and the network only for new ones.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import requests
from cryptography import x509
from sigstore.dsse import Statement
from sigstore.errors import Error as SigstoreError
from sigstore.errors import NetworkError, TUFError
from sigstore.models import Bundle, ClientTrustConfig
from sigstore.oidc import IdentityError, IdentityToken, Issuer, detect_credential
from sigstore.sign import SigningContext
from sigstore.verify import Verifier
from sigstore.verify.policy import Identity

from deltaweights.checkpoint.small_files import read_small
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, UsageError
from deltaweights.manifest.signer import Signer
from deltaweights.signing.bundle import PAYLOAD_TYPE
from deltaweights.util.interruption import run_in_side_thread

MAX_TRUST_CONFIG = 1024 * 1024
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # Fulcio's: the issuer's URL, as bare text
_GIVE_IDENTITY = (
    "give --identity-token, run where there is a browser, or let the CI job have a token (GitHub: id-token: write)"
)


class NotVerified(Exception):
    """The bundle does not hold: ``str`` says why, in the library's words."""


def sign_statement(payload: bytes, *, identity_token: str | None, trust_config: Path | None) -> tuple[bytes, Signer]:
    """Return a bundle around ``payload``, an in-toto statement, and who signed it.

    The identity is that of ``identity_token``, else of the job (in CI), else of who logs in with a browser. Raises ``UsageError``
    where there is none, ``InputOutputError`` when a service cannot be reached, or refuses.
    """
    trust = _trust(trust_config, offline=False)

    def sign() -> Bundle:
        with _quiet(), redirect_stdout(sys.stderr):  # the library asks for a code on stdout
            token = _token(trust, identity_token)
            with SigningContext.from_trust_config(trust).signer(token) as signer:
                return signer.sign_dsse(Statement(payload))

    try:
        bundle = run_in_side_thread(sign)
    except (NetworkError, requests.RequestException, OSError) as error:
        raise _unreachable("Sigstore cannot be reached, so nothing is signed", error) from error
    except (IdentityError, EOFError) as error:
        raise UsageError("no identity to sign as", found=_words(error) or None, remedy=_GIVE_IDENTITY) from error
    except Exception as error:  # what services answer makes the library raise anything
        remedy = "see the service's words; an identity token is good for some minutes, and for the audience sigstore"
        raise InputOutputError("Sigstore did not sign", found=_words(error), remedy=remedy) from error
    return f"{bundle.to_json()}\n".encode(), _who(bundle)


def verified_payload(data: bytes, signer: Signer, *, trust_config: Path | None, offline: bool) -> bytes:
    """Return the payload of a bundle that ``signer`` signed. Raises ``NotVerified``, or ``InputOutputError`` for the trust's."""
    trust = _trust(trust_config, offline=offline)
    try:
        with _quiet():
            policy = Identity(identity=signer.identity, issuer=signer.issuer)
            kind, payload = Verifier(trusted_root=trust.trusted_root).verify_dsse(Bundle.from_json(data), policy)
    except Exception as error:  # hostile bundles make the library, pydantic and cryptography raise anything
        raise NotVerified(_words(error)) from error
    if kind != PAYLOAD_TYPE:
        raise NotVerified(f"its payload is {kind}, not {PAYLOAD_TYPE}")
    return payload


def _trust(path: Path | None, *, offline: bool) -> ClientTrustConfig:
    """Return whom to trust: as ``path`` says, or Sigstore's public instance."""
    try:
        if path is not None:
            return ClientTrustConfig.from_json(read_small(path, MAX_TRUST_CONFIG).decode())
        with _quiet():
            return run_in_side_thread(lambda: ClientTrustConfig.production(offline=offline))
    except (TUFError, requests.RequestException, OSError) as error:
        problem = "Sigstore's list of trusted keys cannot be refreshed"
        raise _unreachable(problem, error, "; to verify with the keys that came with the library: --offline") from error
    except (SigstoreError, ValueError) as error:  # pydantic's errors are ValueErrors, and so is what is not UTF-8
        found = "not JSON of type application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        remedy = "give the file that model_signing takes as --trust_config"
        raise MalformedInput("not a trust configuration", where=path, found=found, remedy=remedy) from error


def _token(trust: ClientTrustConfig, given: str | None) -> IdentityToken:
    raw = given or detect_credential()
    return IdentityToken(raw) if raw else Issuer(trust.signing_config.get_oidc_url()).identity_token()


def _who(bundle: Bundle) -> Signer:
    """Return who the certificate of a bundle names; on GitHub the workflow's URL, which is not in the token."""
    extensions = bundle.signing_certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    issuer = extensions.get_extension_for_oid(_ISSUER).value
    values = [name.value.decode() if isinstance(name, x509.OtherName) else str(name.value) for name in names]
    return Signer(", ".join(values), issuer.value.decode() if isinstance(issuer, x509.UnrecognizedExtension) else "")


def _unreachable(problem: str, error: Exception, more: str = "") -> InputOutputError:
    remedy, code = f"check the network and run again{more}", ErrorCode.NETWORK
    return InputOutputError(problem, found=_words(error), remedy=remedy, code=code)


def _words(error: BaseException) -> str:
    """Return the most telling message among an error and its causes; the library's own are often empty."""
    texts = []
    seen: BaseException | None = error
    while seen is not None:
        texts.append(" ".join(str(seen).split()))
        seen = seen.__cause__
    return ": ".join(dict.fromkeys(filter(None, texts))) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's warnings off stderr: what matters is raised."""
    logger = logging.getLogger("sigstore")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
