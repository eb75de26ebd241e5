"""A real S3 server on loopback (moto's), in a thread of this process, that fails on request.

The client is told where it is by the environment, as with any other S3-compatible endpoint, so whatever is tested goes
the whole way: sockets, signatures, headers, cut bodies, pauses.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

Kind = Literal["error_500", "timeout", "truncated"]

READ_TIMEOUT_S = 1  # the client's
_HANG_S = 1.5  # more than the client waits
_ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We failed on purpose.</Message></Error>"


class S3Server:
    """Starts at once; `stop` ends it. What is in its buckets lives as long as the process."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests = 0
        self.failures = 0
        self.sent_bytes = 0
        self._faults: Iterator[Kind | None] = itertools.repeat(None)
        self._lock = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=self.endpoint, **keys)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be told to use this server, with short timeouts and without pauses of botocore's."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_MAX_ATTEMPTS": "1",
            "FSSPEC_S3": json.dumps(self.options),
            "NO_PROXY": "127.0.0.1",
        }

    @property
    def options(self) -> dict[str, Any]:
        return {"config_kwargs": {"connect_timeout": 2, "read_timeout": READ_TIMEOUT_S}}

    def url(self, place: str) -> str:
        """`s3://bucket/prefix` of `bucket/prefix`; the bucket is made where it is not there yet."""
        bucket = place.split("/")[0]
        if bucket not in {known["Name"] for known in self._client.list_buckets()["Buckets"]}:
            self._client.create_bucket(Bucket=bucket)
        return f"s3://{place}"

    def put(self, place: str, content: bytes = b"") -> None:
        """Makes an object, `bucket/key`, without a request."""
        bucket, key = place.split("/", 1)
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, content)

    def upload(self, folder: Path, place: str) -> str:
        """Copies a local folder's files to `bucket/prefix` and returns its url. Links are followed."""
        url = self.url(place)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return url

    def keys(self, place: str) -> list[str]:
        """Keys of all objects whose key begins with the prefix of `bucket/prefix`, sorted."""
        bucket, _, prefix = place.partition("/")
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    @contextlib.contextmanager
    def fail(
        self, every: int = 10, kinds: Sequence[Kind] = ("error_500", "timeout", "truncated"), *, after: int = 0
    ) -> Iterator[S3Server]:
        """While it lasts, each `every`th request fails: with status 500, by silence, or by a body cut short.

        The first `after` requests are left alone. A request whose answer has no body to cut gets status 500 instead.
        """
        before = self._faults
        chosen = itertools.cycle(kinds)
        self._faults = (
            next(chosen) if number > 0 and number % every == 0 else None for number in itertools.count(1 - after)
        )
        try:
            yield self
        finally:
            self._faults = before

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests += 1
            fault = next(self._faults)
            self.failures += fault is not None
        match fault:
            case None:
                return self._count(self._moto(environ, start_response))
            case "truncated" if environ["REQUEST_METHOD"] == "GET":
                return self._cut(environ, start_response)
            case "timeout":
                time.sleep(_HANG_S)
        _drain(environ)
        start_response("500 Internal Server Error", [("Content-Length", str(len(_ERROR)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [_ERROR]

    def _count(self, answer: Iterable[bytes]) -> Iterable[bytes]:
        for part in answer:
            self.sent_bytes += len(part)
            yield part

    def _cut(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The headers of the whole answer, and half of its body."""
        body = b"".join(self._moto(environ, start_response))
        return [body[: len(body) // 2]]


def _drain(environ: dict[str, Any]) -> None:
    """Takes what the client sends, so that it gets an answer and not a broken pipe."""
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (part := environ["wsgi.input"].read(min(left, 1 << 20))):
        left -= len(part)
