"""The operator's side: its own listener with metrics, state and operations."""
