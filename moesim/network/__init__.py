"""Seconds of bytes: collectives, all-to-all from actual destinations, link loads."""
