"""The right to download, held by a receipt: claims, and claims again before the token expires."""

import asyncio
import time

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.errors import PaymentPending, PaymentWithdrawn, ServerProblem
from bitcache.client.link import Receipt
from storage import base64url

RENEW_BEFORE_S = 120
"""Long enough for the slowest request under way."""
TOKEN_LIFETIME_MIN_S = 60


class Grant:
    """The claim of one receipt. Nothing is asked of the server before the first `renew`."""

    def __init__(self, api: ServerApi, receipt: Receipt) -> None:
        self._api = api
        self._receipt = receipt
        self._claim: wire.ClaimView | None = None
        self._renew_at = 0.0
        self._lock = asyncio.Lock()

    async def renew(self) -> wire.ClaimView:
        """What the payment allows now.

        Raises PaymentPending, PaymentWithdrawn, ServerProblem (a wrong receipt, among others).
        """
        request = wire.ClaimRequest(claim_secret=base64url.encode(self._receipt.claim_secret))
        path = f"/invoices/{self._receipt.invoice_id}/claim"
        try:
            claim = await self._api.post(path, request, wire.ClaimView, repeatable=True)
        except ServerProblem as problem:
            if problem.status == 402:
                raise PaymentPending(f"{problem.detail} Nothing can be downloaded yet.") from problem
            if problem.name == "grant-suspended":
                raise PaymentWithdrawn(
                    f"{problem.detail} What was downloaded is kept. Run the command with the receipt again "
                    "once the payment is confirmed."
                ) from problem
            raise
        self._claim = claim
        # Our clock and the server's may differ: a token that expires early is answered with 401, and whoever
        # meets that claims again.
        lifetime_s = max(claim.grant_expires_at - time.time() - RENEW_BEFORE_S, TOKEN_LIFETIME_MIN_S)
        self._renew_at = time.monotonic() + lifetime_s
        return claim

    async def token(self) -> str:
        """A grant token that is good for a while."""
        async with self._lock:
            if self._claim is None or time.monotonic() > self._renew_at:
                await self.renew()
            assert self._claim is not None
            return self._claim.grant_token
