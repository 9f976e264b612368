"""Schedules and layouts of single papers that are models of their own."""
