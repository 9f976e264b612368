"""Prefix cache of one rank: shared starts of prompts, kept in whole blocks until the space is needed.

A prompt begins with *segments*: a system prompt, a document, the turns before this one. Two requests share a
segment when its id and everything before it agree. The cache holds segments, not blocks, so its cost does not
grow with their length; it evicts from the end of the least recently used one that nobody uses.
"""

from __future__ import annotations

from dataclasses import dataclass

Segments = tuple[tuple[int, int], ...]
"""``(id, tokens)`` of each shared segment at the start of a prompt, in order."""


@dataclass(slots=True)
class _Entry:
    blocks: int
    users: int


class PrefixCache:
    """Cached segments of one rank.

    Attributes
    ----------
    blocks : int
        Held by the cache, in use or not.
    evictable : int
        Of them, those of segments that nobody uses.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.blocks = 0
        self.evictable = 0
        self._used: dict[int, _Entry] = {}
        self._unused: dict[int, _Entry] = {}

    def spans(self, segments: Segments) -> list[tuple[int, int]]:
        """``(id, whole blocks)`` of each segment: a block belongs to the segment it ends in."""
        spans, tokens, before = [], 0, 0
        for name, length in segments:
            tokens += length
            after = tokens // self.block_tokens
            spans.append((name, after - before))
            before = after
        return spans

    def peek(self, segments: Segments) -> tuple[int, int]:
        """Leading blocks that are cached, and how many of those nobody uses now; changes nothing."""
        hit = idle = 0
        for name, wanted in self.spans(segments):
            entry = self._used.get(name)
            if entry is None:
                entry = self._unused.get(name)
                idle += entry.blocks if entry else 0
            hit += min(entry.blocks, wanted) if entry else 0
            if entry is None or entry.blocks < wanted:
                break
        return hit, idle

    def acquire(self, segments: Segments) -> list[int]:
        """Use the leading cached segments; their ids, for :meth:`release`."""
        held = []
        for name, wanted in self.spans(segments):
            entry = self._used.get(name)
            if entry is None:
                entry = self._unused.pop(name, None)
                if entry is None:
                    break
                self.evictable -= entry.blocks
                self._used[name] = entry
            entry.users += 1
            held.append(name)
            if entry.blocks < wanted:
                break
        return held

    def offer(self, name: int, blocks: int, held: list[int]) -> int:
        """Turn a request's own blocks into a cached segment that it uses; how many were turned.

        A segment that others cached meanwhile stays as it is and the request keeps its own copy.
        """
        entry = self._used.get(name)
        if name in held:
            assert entry is not None  # a held segment is in use
            turned = max(blocks - entry.blocks, 0)
            entry.blocks += turned
        elif entry is None and name not in self._unused and blocks > 0:
            turned = blocks
            self._used[name] = _Entry(blocks, 1)
            held.append(name)
        else:
            return 0
        self.blocks += turned
        return turned

    def release(self, held: list[int]) -> None:
        """Stop using segments; the last of a chain becomes the first to be evicted."""
        for name in reversed(held):
            entry = self._used[name]
            entry.users -= 1
            if entry.users == 0:
                del self._used[name]
                self._unused[name] = entry
                self.evictable += entry.blocks
        held.clear()

    def evict(self, blocks: int) -> None:
        """Give up ``blocks`` blocks of unused segments, least recently used first, from their ends.

        Raises
        ------
        ValueError
            If fewer are evictable.
        """
        if blocks > self.evictable:
            message = f"{blocks} blocks to evict, {self.evictable} evictable"
            raise ValueError(message)
        self.blocks -= blocks
        self.evictable -= blocks
        while blocks > 0:
            name, entry = next(iter(self._unused.items()))
            taken = min(blocks, entry.blocks)
            entry.blocks -= taken
            blocks -= taken
            if entry.blocks == 0:
                del self._unused[name]
