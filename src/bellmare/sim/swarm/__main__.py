"""`python -m bellmare.sim.swarm`: many random lives of a fleet, judged by an oracle. Status 1 if a rule is broken."""

import argparse
import sys

from bellmare.sim.swarm import campaign

SEEDS = 300
REQUESTS = 1_000
SEEDS_MAX = 1_000_000
REQUESTS_MAX = 1_000_000
JOBS_MAX = 64


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bellmare.sim.swarm", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds 0 to N-1; default {SEEDS}")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"per seed; default {REQUESTS}")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default 1")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    given = parser.parse_args(arguments)
    for name, value, most in (
        ("seeds", given.seeds, SEEDS_MAX),
        ("requests", given.requests, REQUESTS_MAX),
        ("jobs", given.jobs, JOBS_MAX),
    ):
        if not 1 <= value <= most:
            parser.error(f"--{name} {value}: between 1 and {most}")
    seeds = range(given.seeds) if given.seed is None else [given.seed]
    done = campaign.run(seeds, given.requests, jobs=given.jobs)
    print(campaign.as_json(done) if given.json else campaign.table(done))
    return 0 if done.passed else 1


if __name__ == "__main__":
    sys.exit(main())
