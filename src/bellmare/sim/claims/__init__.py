"""Published figures of designs like ours, put to the test: one closed loop of connections asks stock Ollamas and the
core, on a model of the GPU that the figures are said to be from. A rule in ``verdict`` judges, nobody else.
"""
