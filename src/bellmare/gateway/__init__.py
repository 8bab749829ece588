"""The data plane: the phases of a request, from the parsed head to the accounted answer."""
