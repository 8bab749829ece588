"""The command line. Heavy imports are lazy: `bellmare --version` must be quick."""
