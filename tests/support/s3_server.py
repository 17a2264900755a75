"""moto's S3 in a process of its own, made to check signatures."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError

_STARTS_WITHIN_SECONDS = 60
_CALLS_WITHOUT_A_KEY = 3  # the user, its key and its policy
_numbers = itertools.count()


@dataclass(frozen=True)
class S3Server:
    """A running S3 and the one user it knows."""

    url: str
    access_key: str
    secret_key: str
    environment: dict[str, str] = field(default_factory=dict)

    def client(self, **changes: str) -> Any:
        given = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **(given | changes))

    def new_bucket(self) -> str:
        name = f"bucket-{os.getpid()}-{next(_numbers)}"
        self.client().create_bucket(Bucket=name)
        return name


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(_CALLS_WITHOUT_A_KEY)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(port, process)
            yield _with_user(url)
        finally:
            process.kill()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    waiting = threading.Event()
    for _ in range(_STARTS_WITHIN_SECONDS * 20):
        assert process.poll() is None, "moto ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        waiting.wait(0.05)
    raise AssertionError("moto did not start")


def _with_user(url: str) -> S3Server:
    iam = boto3.client(
        "iam", endpoint_url=url, region_name="us-east-1", aws_access_key_id="nobody", aws_secret_access_key="nobody"
    )
    try:
        iam.create_user(UserName="tests")
        key = iam.create_access_key(UserName="tests")["AccessKey"]
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="tests", PolicyName="all", PolicyDocument=policy)
    except BotoCoreError as error:
        raise AssertionError(f"moto does not answer: {error}") from error
    access, secret = key["AccessKeyId"], key["SecretAccessKey"]
    environment = {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }
    return S3Server(url, access, secret, environment)
