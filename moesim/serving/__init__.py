"""Serving: requests arrive, are routed to instances of an engine, and share their iterations."""
