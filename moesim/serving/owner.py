"""What an instance needs of the service that it belongs to."""

from __future__ import annotations

from typing import Protocol

from moesim.serving.live import Live


class Owner(Protocol):
    """Who an instance belongs to."""

    def finished(self, live: Live, instance: int) -> None:
        """A request has emitted its last token."""
        ...

    def prefilled(self, live: Live, instance: int) -> bool:
        """A prompt is computed; True when the request leaves for another instance now."""
        ...

    def next_arrival_ps(self) -> int:
        """When the next known request arrives. [ps]"""
        ...

    def input_tokens(self, request: int) -> int:
        """Prompt of a request as it arrived. [tokens]"""
        ...
