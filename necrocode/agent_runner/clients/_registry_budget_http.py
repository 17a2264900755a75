"""The budgets of specs in a Task Registry service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from necrocode.agent_runner import _names
from necrocode.agent_runner.clients._http import ServiceClient
from necrocode.agent_runner.errors import ServiceError, TaskNotFoundError
from necrocode.agent_runner.spending import BudgetReservation, BudgetUsage

if TYPE_CHECKING:
    from necrocode.agent_runner.spending import Spending, SpendingLimits


class SpecBudgetsClient(ServiceClient):
    """The part of ``TaskRegistryClient`` that reserves and settles; the Protocol is ``SpecBudgets``."""

    def reserve_budget(
        self,
        spec_name: str,
        reservation_id: str,
        *,
        run_id: str,
        need: Spending,
        limits: SpendingLimits,
        ttl_seconds: float,
    ) -> BudgetReservation:
        """Set ``need`` aside for a question of the spec, where that stays within ``limits``; see ``SpecBudgets``."""
        body = {
            "reservation_id": reservation_id,
            "run_id": run_id,
            "need": need.model_dump(),
            "limits": limits_on_the_wire(limits),
            "ttl_seconds": ttl_seconds,
        }
        answer = self._budget_call("POST", spec_name, "/reservations", body)
        try:
            return BudgetReservation.model_validate(answer)
        except ValueError as error:
            raise _unreadable("reservation") from error

    def settle_budget(self, spec_name: str, reservation_id: str, spent: Spending) -> BudgetUsage:
        """Tell what a question came to; what was told first stays."""
        path = f"/reservations/{quote(reservation_id, safe='')}"
        return _usage(self._budget_call("PUT", spec_name, path, spent.model_dump()))

    def budget_usage(self, spec_name: str) -> BudgetUsage:
        """What the spec has spent and reserved."""
        return _usage(self._budget_call("GET", spec_name))

    def reset_budget(self, spec_name: str) -> BudgetUsage:
        """Forget what the spec has spent; questions under way still count."""
        return _usage(self._budget_call("DELETE", spec_name))

    def _budget_call(self, method: str, spec_name: str, path: str = "", body: dict[str, Any] | None = None) -> object:
        if not self._http.has("budgets"):
            raise ServiceError(f"The task registry at {self._http.base_url} cannot keep budgets of specs.")
        try:
            name = quote(_names.check_spec_name(spec_name), safe="")
        except ValueError as error:
            raise TaskNotFoundError(f"No spec can be called {spec_name!r}: it {error}.", status_code=404) from error
        whole = f"/specs/{name}/budget{path}"
        answer: object = self._http.get(whole) if method == "GET" else self._http.write(method, whole, json_body=body)
        return answer


def limits_on_the_wire(limits: SpendingLimits) -> dict[str, Any]:
    """The limits as JSON, money in whole micro-dollars; those that are not set are left out."""
    given = {
        "max_tokens": limits.max_tokens,
        "max_calls": limits.max_calls,
        "max_cost_micro_usd": limits.max_cost_micro_usd,
        "max_seconds": limits.max_seconds,
    }
    return {name: value for name, value in given.items() if value is not None}


def _usage(answer: object) -> BudgetUsage:
    try:
        return BudgetUsage.model_validate(answer)
    except ValueError as error:
        raise _unreadable("budget") from error


def _unreadable(what: str) -> ServiceError:
    return ServiceError(f"The task registry answered something that is no {what}.")
