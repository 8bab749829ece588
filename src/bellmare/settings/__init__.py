"""File, environment and flags to validated settings, with a published JSON schema.

Sources, later wins: defaults < OLLAMA_* < ``bellmare.yaml`` < ``BELLMARE_*`` < flags. Nothing here reads global state:
the environment is an argument. A wrong source is refused as a whole, with every problem found.
"""

from bellmare.settings.describe import settings_schema
from bellmare.settings.load import load_settings
from bellmare.settings.model import Settings, WorkerSettings
from bellmare.settings.problems import Problem, SettingsError

__all__ = ["Problem", "Settings", "SettingsError", "WorkerSettings", "load_settings", "settings_schema"]
