"""What the web process keeps for all requests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from app.services import Services
from app.settings import Settings
from app.web.accounts import Accounts
from app.web.rates import Rates
from app.web.signing import Signing
from app.web.supabase_auth import SupabaseAuth

if TYPE_CHECKING:
    from app.web.api.waiting import Waiting
    from app.web.batches import Batches
    from app.web.events import Events
    from app.web.health import Ready
    from app.web.wakes import Wakes


@dataclass(frozen=True)
class State:
    """Made once by `create_app`; nothing in it connects before its first use.

    `analyses`: the blocks that requests wait for.
    """

    services: Services
    accounts: Accounts
    signing: Signing
    supabase: SupabaseAuth
    rates: Rates
    events: "Events"
    ready: "Ready"
    wakes: "Wakes"
    analyses: "Waiting"
    batches: "Batches"

    @property
    def settings(self) -> Settings:
        return self.services.settings


def state_of(request: HTTPConnection) -> State:
    state: State = request.app.state.toban
    return state
