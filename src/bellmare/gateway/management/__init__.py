"""Changes to what the fleet stores, by clients that have the right to: one request, carried out on every worker."""
