"""The asyncio shell around the core: clock, tasks, driver (the single writer), effects, recorder, replay."""
