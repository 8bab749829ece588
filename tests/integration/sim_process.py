"""A simulated worker as a process of its own: ``sim_process.py PORT TIME_SCALE [PARALLEL]`` prints its port."""

import asyncio
import sys

from rig import start_sim


async def main(port: int, time_scale: float, parallel: int) -> None:
    roomy = {"parallel": parallel, "vram_bytes": 10**13} if parallel else {}
    worker = await start_sim(port=port, time_scale=time_scale, **roomy)
    print(worker.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
