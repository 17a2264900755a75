"""One suite per Protocol, passed by every implementation of it: ``…_contract.py`` states it, ``test_….py`` runs it."""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{protocol}_contract"
        for protocol in ("task_registry", "task_queue", "repo_pool", "artifact_store", "language_model", "sandbox")
    )
)
