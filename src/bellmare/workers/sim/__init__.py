"""A simulated Ollama: its HTTP interface in front, the twin behind, driven in wall time. No GPU, no model, no download.

``server`` starts it, ``app`` routes, ``requests`` reads bodies as Go does, ``answers`` writes what the twin says as
JSON or NDJSON, ``driver`` is the only caller of the twin, ``world`` is the catalogue of models. What it does is the
twin's business (docs/reference/ollama.md); what it says is made up, from the prompt and a seed, the same every time.
"""

from bellmare.workers.sim.faults import Fault
from bellmare.workers.sim.server import SimConfig, SimServer, start_sim_worker
from bellmare.workers.sim.world import DEFAULT_MODELS, SimModel, load_models

__all__ = ["DEFAULT_MODELS", "Fault", "SimConfig", "SimModel", "SimServer", "load_models", "start_sim_worker"]
