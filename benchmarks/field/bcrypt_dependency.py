"""A FastAPI dependency checks a password hash on the loop.

---
kind = "native code behind dependency injection"
after = "habit: bcrypt.checkpw in an async dependency"
culprit = ["current_user"]
causes = ["native"]
remedy = ["to_thread", "thread"]
never = ["ProcessPool"]
needs = ["fastapi", "uvicorn", "bcrypt"]
blocks = 2
"""

from __future__ import annotations

import _truth
import bcrypt
from fastapi import Depends, FastAPI

app = FastAPI()
HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(12))


async def current_user() -> str:
    return "admin" if bcrypt.checkpw(b"secret", HASH) else ""


@app.get("/me")
async def me(user: str = Depends(current_user)) -> str:
    return user


if __name__ == "__main__":
    _truth.serve(app, ["/me"])
