"""What every git process is told, whatever the configuration of its repository says."""

from __future__ import annotations

import os

# Variables of the caller that network commands need; all other inherited ones, every GIT_* among them, are dropped.
NETWORK_VARIABLES = (
    "SSH_AUTH_SOCK", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH",
)  # fmt: skip
# Given by environment, so they outrank a repository's own configuration, and do not reach the far side of a push to a
# local path: that repository's hooks are its owner's business.
CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.attributesFile": os.devnull,
    "core.quotePath": "false",
    "core.alternateRefsCommand": ":",
    # A folder that only looks like a repository, as a commit can hold one, is none.
    "safe.bareRepository": "explicit",
    "credential.helper": "",
    # A remote that has gone silent ends a transfer, even one whose starter has died.
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "120",
    # What was looked at is what is asked: neither another address, nor another place to fetch from first.
    "http.followRedirects": "false",
    "transfer.bundleURI": "false",
    "protocol.ext.allow": "never",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "push.recurseSubmodules": "no",
    "status.submoduleSummary": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "transfer.credentialsInUrl": "die",
    "transfer.fsckObjects": "false",
    "fetch.writeCommitGraph": "false",
    "commit.gpgSign": "false",
    "push.gpgSign": "false",
    "log.showSignature": "false",
    "advice.detachedHead": "false",
}
# A repository may belong to another user (a bind mount, a CI cache); its location was chosen by the operator.
GLOBAL_CONFIG = "[safe]\n\tdirectory = *\n"
# git asks "Username for 'https://host': ", then "Password for 'https://x-access-token@host': ". Any other question
# comes from a place that the token is not for: plain http would send it in clear, a proxy is no repository.
ASKPASS = """#!/bin/sh
[ -n "$NECROCODE_GIT_TOKEN" ] || exit 1
case "$1" in
"Username for 'https://$NECROCODE_GIT_TOKEN_HOST': ") printf '%s\\n' "x-access-token" ;;
"Password for 'https://"*"@$NECROCODE_GIT_TOKEN_HOST': ") printf '%s\\n' "$NECROCODE_GIT_TOKEN" ;;
*) exit 1 ;;
esac
"""
SSH_COMMAND = "ssh -oBatchMode=yes -oServerAliveInterval=30 -oServerAliveCountMax=4"


def variables(config: dict[str, str]) -> dict[str, str]:
    """The variables by which git takes these settings (git-config(1), ``GIT_CONFIG_COUNT``)."""
    told = {"GIT_CONFIG_COUNT": str(len(config))}
    for number, (key, value) in enumerate(config.items()):
        told |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return told
