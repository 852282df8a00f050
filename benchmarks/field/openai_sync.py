"""The synchronous OpenAI client in a coroutine.

---
kind = "LLM client"
after = "reports of chat endpoints that freeze (openai-python)"
culprit = ["answer"]
causes = ["io"]
remedy = ["AsyncOpenAI"]
needs = ["openai"]
"""

from __future__ import annotations

import asyncio

import _truth
import openai

client = openai.OpenAI(api_key="x", base_url=f"http://127.0.0.1:{_truth.slow_http()}", max_retries=0)


async def answer() -> object:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await answer()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())
