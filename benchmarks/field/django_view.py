"""An asynchronous Django view builds its answer in Python.

---
kind = "computation behind Django's handler"
after = "habit: async views that compute (Django, ASGI)"
culprit = ["statistics"]
causes = ["python"]
remedy = ["thread", "process", "offload"]
needs = ["django", "uvicorn"]
blocks = 2
"""

from __future__ import annotations

import _truth
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", DEBUG=False)
django.setup()


async def statistics(request: HttpRequest) -> JsonResponse:
    total = 0
    for n in range(6_000_000):
        total += n * n % 7
    return JsonResponse({"total": total})


urlpatterns = [path("statistics", statistics)]

if __name__ == "__main__":
    _truth.serve(get_asgi_application(), ["/statistics"])
