"""How many tokens a prompt has, by the model's own tokeniser, and what of it fits into the context."""
