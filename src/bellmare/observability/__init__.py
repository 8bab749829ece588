"""Metrics and logs, rendered from events and decisions."""
