"""Names with bytes that are not UTF-8, as file names may have, are exported, scraped and logged without an error."""

from __future__ import annotations

from hostproc import succeeded
from test_descriptors import receiver

NAMES = r"""
    import logging, urllib.request
    from concurrent.futures import ThreadPoolExecutor
    import loopwatch
    records = []
    class Recorder(logging.Handler):
        def emit(self, record):
            records.append(record)
    logging.getLogger().addHandler(Recorder())
    bad = "caf\udce9"

    def work():
        time.sleep(0.01)
    work.__qualname__ = work.__module__ = bad
    class Odd(Exception):
        pass
    Odd.__qualname__ = bad
    def fails():
        raise Odd
    names = {}
    exec(compile("import time\ndef culprit(): time.sleep(0.1)", f"{bad}.py", "exec"), names)
    culprit = names["culprit"]
    culprit.__code__ = culprit.__code__.replace(co_name=bad, co_qualname=bad)

    sys.argv[0] = f"{bad}.py"
    agent = loopwatch.install(prometheus_port=0, otlp_endpoint=sys.argv[1], export_interval=0.1, threshold=0.03)

    async def main():
        asyncio.current_task().set_name(bad)
        with ThreadPoolExecutor(2, thread_name_prefix=bad) as pool:
            for task in (work, fails):
                await asyncio.gather(asyncio.get_running_loop().run_in_executor(pool, task), return_exceptions=True)
            for _ in range(3):
                await asyncio.sleep(0.1)
                culprit()
            await asyncio.sleep(0.1)
            agent.flush()
            return await asyncio.to_thread(lambda: urllib.request.urlopen(agent.snapshot().agent.prometheus).read())

    text = asyncio.run(main()).decode()
    exporter = agent._parts.telemetry.providers._private._exporter
    loopwatch.uninstall()
    say(errors=[each.name for each in records if each.levelname == "ERROR" or not each.name.startswith("loopwatch")],
        exported=bool(exporter.exported), dropped=sum(exporter.dropped.values()), faults=agent.snapshot().agent.faults,
        scraped=text.count(r'pool_name="caf\\udce9"') > 3 and r'error_type="__main__.caf\\udce9"' in text)
"""


def test_bytes_that_are_not_utf8() -> None:
    """Such names of tasks, errors, threads, files and the program are exported and scraped in escaped form."""
    with receiver() as url:
        found = succeeded(NAMES, url)
    assert found == {"errors": [], "exported": True, "dropped": 0, "faults": {}, "scraped": True}
