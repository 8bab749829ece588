"""A simulated worker as a process of its own, to be killed: ``sim_process.py PORT TIME_SCALE`` prints its port."""

import asyncio
import sys

from rig import start_sim


async def main(port: int, time_scale: float) -> None:
    worker = await start_sim(port=port, time_scale=time_scale)
    print(worker.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
