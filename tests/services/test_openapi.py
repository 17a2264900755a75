"""What each service says of itself in OpenAPI is what it does: found out by schemathesis, with few examples here.

``make fuzz-api`` asks for more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support.repositories import make_repository
from tests.support.serving import necrocode_serve

TOKEN = "a-token-for-tests"
# The others judge what is no promise here: that an unknown header is refused, which status fits best, or that whatever
# fits the schema is accepted (which tags are printable, and that a key names one write, no schema can say).
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
MORE_CHECKS = {"artifact-store": ("negative_data_rejection", "use_after_free")}
EXAMPLES = os.environ.get("NECROCODE_API_EXAMPLES", "8")


@pytest.mark.parametrize("service", ["task-registry", "repo-pool", "artifact-store"])
def test_the_service_does_what_its_openapi_says(service: str, tmp_path: Path) -> None:
    make_repository(tmp_path / "repo")
    arguments = [service, "--port", "0", "--data-dir", str(tmp_path / "data"), "--no-access-log"]
    with necrocode_serve(tmp_path, *arguments, env={"NECROCODE_SERVICE_TOKEN": TOKEN}) as served:
        url = served.urls[service]
        bearer = f"Authorization: Bearer {TOKEN}"
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
        checks = (*CHECKS, *MORE_CHECKS.get(service, ()))
        command += ["--header", bearer, "--checks", ",".join(checks), "--max-examples", EXAMPLES, "--seed", "1"]
        command += ["--exclude-path", "/events/stream"]  # it never ends
        command += ["--request-timeout", "30", "--suppress-health-check", "all", "--no-color", "--warnings", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + served.log.read_text()[-2000:]
        assert requests.get(f"{url}/health", timeout=10).status_code == 200
    assert "Traceback" not in served.log.read_text()
