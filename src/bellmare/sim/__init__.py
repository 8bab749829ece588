"""Virtual time: the gateway's own decision core against a model of the world, on traces and generated workloads.

``workload`` says what is asked for, ``fleet`` of whom. ``drive`` feeds ``core.engine.Engine`` exactly as the live
driver does; ``world`` (quick) or ``twin_world`` (faithful) answers it; ``stock`` is the same without bellmare.
``tally`` keeps the books of a run, ``belady`` is the bound that knows the future, ``scenarios`` and ``workloads`` are
what is run, ``report`` and ``command`` what is shown. ``faults`` and ``clients`` are what goes wrong with machines and
people; ``swarm`` is another thing: random fleets that put the core's rules to the test. Nothing here imports
``runtime`` or waits for a real clock.
"""
