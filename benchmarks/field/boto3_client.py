"""An AWS client is made for each request.

---
kind = "expensive constructor"
after = "reports of slow boto3.client() (boto3, botocore issues)"
culprit = ["presign"]
causes = ["python", "native_gil", "io"]
remedy = ["once", "start-up", "share"]
needs = ["boto3"]
"""

from __future__ import annotations

import asyncio

import _truth
import boto3


async def presign() -> str:
    client = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="eu-west-1").client(
        "ec2"
    )
    return client.meta.region_name


async def main() -> None:
    await asyncio.sleep(0.3)
    with _truth.truth():
        await presign()
    await asyncio.sleep(0.4)


if __name__ == "__main__":
    _truth.run(main())
