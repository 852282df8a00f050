"""A FastAPI endpoint renders a large Jinja2 template.

---
kind = "template rendering behind FastAPI"
after = "reports of slow TemplateResponse on large tables (Starlette, FastAPI)"
culprit = ["invoice", "invoice.html"]
causes = ["python", "native_gil"]
remedy = ["thread", "process", "fewer", "cache", "stream", "generate", "page"]
never = ["start-up"]
needs = ["fastapi", "uvicorn", "jinja2"]
blocks = 2
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import _truth
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader

folder = Path(tempfile.mkdtemp())
(folder / "invoice.html").write_text(
    "<table>{% for n in range(rows) %}\n"
    "<tr><td>{{ n }}</td><td>{{ ('item %d' % n) | upper }}</td></tr>{% endfor %}</table>"
)
pages = Environment(loader=FileSystemLoader(folder), autoescape=True)
app = FastAPI()


@app.get("/invoice", response_class=HTMLResponse)
async def invoice() -> str:
    return pages.get_template("invoice.html").render(rows=250_000)


if __name__ == "__main__":
    _truth.serve(app, ["/invoice"])
