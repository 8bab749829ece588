"""File, environment and flags to validated settings, with a published JSON schema."""
