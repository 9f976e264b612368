"""Measured runs beside predictions; nothing here is ever fitted to."""
