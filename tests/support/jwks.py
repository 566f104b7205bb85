"""A server that shows public signing keys, as Supabase Auth does."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm


class Jwks:
    """One ES256 key at `url`, while the block lasts."""

    kid = "key-1"

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = {
            **ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True),
            "kid": self.kid,
            "alg": "ES256",
            "use": "sig",
        }
        body = json.dumps({"keys": [public]}).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/auth/v1/.well-known/jwks.json"

    def sign(self, claims: Mapping[str, object], kid: str = kid) -> str:
        return jwt.encode(dict(claims), self._key, "ES256", {"kid": kid})

    def confused(self, claims: Mapping[str, object]) -> str:
        """Signed with the public key as if it were a shared secret, which a careless check takes."""
        pem = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT", "kid": self.kid}, claims)]
        head = b".".join(_base64(part) for part in parts)
        return (head + b"." + _base64(hmac.new(pem, head, hashlib.sha256).digest())).decode()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
