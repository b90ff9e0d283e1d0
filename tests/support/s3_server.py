"""A real S3 server, moto's, in a process of its own on a free port; and what tests do with its buckets."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

STARTS_WITHIN_S = 120.0
SERVE = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


@dataclass(frozen=True)
class S3Server:
    """A running server. Attributes: port: where it listens."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find it, and sign in."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @cached_property
    def client(self) -> Any:
        """A client that shares nothing with the code under test."""
        import boto3

        environment = self.environment
        return boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def bucket(self, name: str) -> Bucket:
        """Makes a bucket."""
        self.client.create_bucket(Bucket=name)
        return Bucket(self, name)


@dataclass(frozen=True)
class Bucket:
    """A bucket. Attributes: server: where it is; name: its name."""

    server: S3Server
    name: str

    def __str__(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes | Path) -> None:
        """Writes an object."""
        body = data.read_bytes() if isinstance(data, Path) else data
        self.server.client.put_object(Bucket=self.name, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        """The content of an object."""
        content: bytes = self.server.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def delete(self, key: str) -> None:
        """Removes an object."""
        self.server.client.delete_object(Bucket=self.name, Key=key)

    def content(self, prefix: str = "") -> Mapping[str, tuple[str, Any]]:
        """The tag and the time of each object, by what follows the prefix."""
        pages = self.server.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return {
            one["Key"].removeprefix(prefix): (one["ETag"], one["LastModified"])
            for page in pages
            for one in page.get("Contents", ())
        }

    def refuse(self, action: str, keys: str = "*") -> None:
        """Refuses an action, such as s3:GetObject, on some keys to everybody."""
        arn = f"arn:aws:s3:::{self.name}"
        refused = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": [arn, f"{arn}/{keys}"]}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [refused]})
        self.server.client.put_bucket_policy(Bucket=self.name, Policy=policy)


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs the server for the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MOTO_ACCOUNT_ID": "123456789012"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        end = time.monotonic() + STARTS_WITHIN_S
        while not _answers(port):
            assert process.poll() is None, "the S3 server has ended"
            assert time.monotonic() < end, "the S3 server does not answer"
            time.sleep(0.1)
        yield S3Server(port)
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
