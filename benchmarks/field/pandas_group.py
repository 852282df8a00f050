"""A coroutine groups a data frame with a Python function.

---
kind = "pandas"
after = "habit: DataFrame.groupby().apply in dashboards"
culprit = ["daily"]
causes = ["python", "native_gil", "native"]
remedy = ["thread", "process", "vector"]
needs = ["pandas"]
"""

from __future__ import annotations

import asyncio

import _truth
import numpy as np
import pandas as pd

FRAME = pd.DataFrame({"day": np.arange(200_000) % 5_000, "amount": 1.0})


async def daily() -> pd.Series:
    return FRAME.groupby("day")["amount"].apply(lambda part: part.max() - part.min())


async def main() -> None:
    FRAME.head(10).groupby("day")["amount"].apply(len)
    await asyncio.sleep(0.3)
    with _truth.truth():
        await daily()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())
