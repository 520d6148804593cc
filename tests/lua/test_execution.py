async def test_smoke(engine):
    job = await engine.running()
    await engine.complete(job)
    assert await engine.state(job.execution_id) == "completed"
