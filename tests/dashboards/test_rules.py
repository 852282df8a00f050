"""The Prometheus rules: tested by promtool, consistent with the catalog, and each alert with its section in the
runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from boards import committed

from loopwatch.health.finding_rules import family
from loopwatch.health.naming import pool_name
from loopwatch.telemetry.metrics.catalog import CATALOG, STARVED_BY, Kind
from loopwatch.telemetry.metrics.counters import QUOTA

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "prometheus"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
SUITES = sorted((RULES / "tests").glob("*.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)"
)


def rules(name: str) -> list[dict[str, Any]]:
    """Return the rules of a file."""
    read = yaml.safe_load((RULES / name).read_text(encoding="utf-8"))
    return [rule for group in read["groups"] for rule in group["rules"]]


RECORDED = {rule["record"]: rule for rule in rules("recording.yml")}
ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}

KNOWN: dict[str, set[str]] = {"up": {"job", "instance"}, "ALERTS": {"job", "instance", "alertname"}}
"""Existing series, and their labels."""
for _metric in CATALOG:
    _labels = {"job", "instance"} | {name.replace(".", "_") for name in _metric.attributes}
    if _metric.kind is Kind.HISTOGRAM:
        KNOWN |= {f"{_metric.prometheus}_bucket": _labels | {"le"}}
        KNOWN |= {f"{_metric.prometheus}_{part}": _labels for part in ("count", "sum")}
    else:
        KNOWN[_metric.prometheus] = _labels
LEVELS = {
    "job": {"job"},
    "instance": {"job", "instance"},
    "loop": {"job", "instance", "asyncio_eventloop_name"},
    "cause": {"job", "instance", "asyncio_eventloop_name", "loopwatch_cause"},
    "pool": {"job", "instance", "loopwatch_pool_name", "loopwatch_pool_kind"},
    "culprit": {"job", "loopwatch_culprit", "loopwatch_cause"},
}
KNOWN |= {name: LEVELS[name.split(":")[0]] for name in RECORDED}


def nodes(node: Any) -> Iterator[Any]:
    """Yield a node of an expression and all nodes below it."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        child = getattr(node, name, None)
        if child is not None:
            yield from nodes(child)
    if type(node).__name__ == "Call":
        for argument in node.args:
            yield from nodes(argument)


def anchor(heading: str) -> str:
    """Return the fragment of a link to a heading, as GitHub generates it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    """``promtool check rules`` reports nothing, not even duplicates."""
    command = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", "recording.yml", "alerts.yml"]
    checked = subprocess.run(command, cwd=RULES, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RECORDED)} rules found" in checked.stdout and f"{len(ALERTS)} rules found" in checked.stdout


@pytest.mark.long
@needs_promtool
@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_promtool_tests_pass(suite: Path) -> None:
    """The rules fire and do not fire as their tests expect."""
    ran = subprocess.run(["promtool", "test", "rules", suite.name], cwd=suite.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "SUCCESS" in ran.stdout


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    """Each alert has a case that compares its labels and texts, and one in which it stays silent; each record is
    used."""
    fires: dict[str, int] = dict.fromkeys(ALERTS, 0)
    stays: dict[str, int] = dict.fromkeys(ALERTS, 0)
    asked = ""
    for suite in SUITES:
        for case in yaml.safe_load(suite.read_text(encoding="utf-8"))["tests"]:
            asked += "".join(item["expr"] for item in case.get("promql_expr_test", ()))
            for item in case.get("alert_rule_test", ()):
                where = fires if item["exp_alerts"] else stays
                where[item["alertname"]] += 1
                for alert in item["exp_alerts"]:
                    assert set(alert["exp_annotations"]) == {"summary", "description", "runbook_url", "dashboard"}
    assert [name for name in ALERTS if not fires[name]] == []
    assert [name for name in ALERTS if not stays[name]] == []
    used = asked + "".join(rule["expr"] for rule in (*RECORDED.values(), *ALERTS.values()))
    assert [name for name in RECORDED if name not in used and "agent_cpu" not in name] == []


@pytest.mark.parametrize(
    "rule", [*RECORDED.values(), *ALERTS.values()], ids=lambda rule: rule.get("record", rule.get("alert"))
)
def test_rule_fits_the_catalog(rule: dict[str, Any]) -> None:
    """Metrics, labels and kinds are those of the catalog; aggregations keep labels by name."""
    tree = promql_parser.parse(rule["expr"])
    seen: set[str] = set()
    for node in nodes(tree):
        if type(node).__name__ == "VectorSelector":
            assert node.name in KNOWN, f"nothing is called {node.name}"
            labels = KNOWN[node.name]
            seen |= labels
            assert {matcher.name for matcher in node.matchers.matchers} <= labels, node.name
        if type(node).__name__ == "Call" and node.func.name in ("rate", "increase"):
            (name,) = [item.name for item in nodes(node) if type(item).__name__ == "VectorSelector"]
            assert name.endswith(("_total", "_bucket", "_count", "_sum"))
        if type(node).__name__ == "Call" and node.func.name == "label_replace":
            seen.add(node.args[1].val)
    for node in nodes(tree):
        if type(node).__name__ == "AggregateExpr":
            assert node.modifier is not None and str(node.modifier.type).endswith("By")
            assert set(node.modifier.labels) <= seen
    if "record" in rule:
        level, _, operation = rule["record"].split(":")
        assert level in LEVELS and operation
        kept = [set(node.modifier.labels) - {"le"} for node in nodes(tree) if type(node).__name__ == "AggregateExpr"]
        recorded = [name for name in RECORDED if name in rule["expr"]]
        assert LEVELS[level] in kept or any(name.split(":")[0] == level for name in recorded)


def test_queries_in_the_texts_of_alerts_fit_the_catalog() -> None:
    """What the text of an alert asks Prometheus for parses, with labels and an attribute value that exist."""
    asking = [text for alert in ALERTS.values() for text in alert["annotations"].values() if " query (" in text]
    assert asking == [ALERTS["LoopwatchStarved"]["annotations"]["description"]]
    (asked,) = re.findall(r'query \(printf "(.+?)" \$labels', asking[0])
    for node in nodes(promql_parser.parse(asked.replace("%q", '"shop"'))):
        if type(node).__name__ == "VectorSelector":
            assert {matcher.name for matcher in node.matchers.matchers} <= KNOWN[node.name]
    ((label, value),) = re.findall(r'label "(\w+)"\) "(\w+)"', asking[0])
    assert f"by ({label})" in asked
    assert (label, value) == (STARVED_BY.replace(".", "_"), QUOTA)


def test_recreated_pools_are_one_family() -> None:
    """The rule strips the number from the name of a recreated pool as findings do."""
    (pattern,) = re.findall(
        r'"loopwatch_pool_family", "\$1", "loopwatch_pool_name", "(.+)"',
        RECORDED["pool:loopwatch_pool_crashes:moments15m"]["expr"],
    )
    names = [pool_name("ProcessPoolExecutor", "/srv/app.py:12 in main", set())]
    for _ in range(11):
        names.append(pool_name("ProcessPoolExecutor", "/srv/app.py:12 in main", set(names)))
    assert names[-1].endswith(" #12")
    first, names = names[0], [*names, "lane #a", "#7", "other"]
    found = [re.fullmatch(pattern, name) for name in names]
    assert [match and match[1] for match in found] == [family(name) for name in names]
    assert [family(name) for name in names] == [first] * 12 + ["lane #a", "#7", "other"]


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """The severity is one of two; texts show the value; links lead to the alert's section and an existing dashboard."""
    assert alert["alert"].startswith("Loopwatch")
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in ("page", "ticket")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "dashboard"}
    assert "{{ $labels.job }}" in notes["summary"]
    assert len(notes["description"]) > 120
    if alert["alert"] not in ("LoopwatchAgentDisabled", "LoopwatchTargetDown", "LoopwatchJobAbsent"):
        assert "$value" in notes["description"]
    assert notes["runbook_url"] == (
        "{{ with $externalLabels.runbooks }}{{ . }}{{ else }}docs/runbook.md{{ end }}#" + anchor(alert["alert"])
    )
    found = re.fullmatch(r"\{\{ \$externalLabels\.grafana \}\}/d/([\w-]+)\?(.*)", notes["dashboard"])
    assert found is not None
    board = committed()[found[1]]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    given = dict(part.split("=", 1) for part in found[2].split("&"))
    assert {name.removeprefix("var-") for name in given} <= variables
    assert all(re.fullmatch(r"\{\{ urlquery \$labels\.\w+ \}\}", value) for value in given.values())
    for text in notes.values():
        used = set(re.findall(r"\$labels\.(\w+)", text))
        assert used <= set(re.findall(r"\w+", alert["expr"])) | KNOWN.get(alert["expr"].split()[0], set())


def test_each_alert_has_its_section_and_each_section_its_alert() -> None:
    """The runbook's sections are the alerts in their order; each has its severity and all parts of a section."""
    parts = re.split(r"(?m)^## (.+)\n", RUNBOOK)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert [name for name in sections if name != "Setting up"] == list(ALERTS)
    for name, alert in ALERTS.items():
        text = sections[name]
        assert text.lstrip().startswith(f"`{alert['labels']['severity']}`. **It means:**"), name
        assert "**Now:**" in text and "**False alarm:**" in text and "**Likely causes:**" in text, name
        assert "**Confirm:**" in text, name
    links = re.findall(r"\]\(#([\w-]+)\)", RUNBOOK)
    assert links and set(links) <= {anchor(name) for name in sections}


def test_expressions_of_the_runbook_are_valid() -> None:
    """Every expression in the runbook parses, and uses existing series."""
    blocks = "\n".join(re.findall(r"(?s)```promql\n(.*?)```", RUNBOOK))
    asked = [line.split("#")[0] for line in blocks.splitlines()]
    asked += [
        text for text in re.findall(r"`([^`]+)`", re.sub(r"(?s)```.*?```", "", RUNBOOK)) if "_" in text or "up{" in text
    ]
    expressions = 0
    for text in asked:
        names = set(re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r'"[^"]*"', "", text)))
        if not any(name in KNOWN for name in names):
            continue
        expressions += 1
        for node in nodes(promql_parser.parse(" ".join(text.split()))):
            if type(node).__name__ == "VectorSelector":
                assert node.name in KNOWN, text
    assert expressions > 25


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    """The configuration in the runbook is YAML that lists existing files."""
    (text,) = re.findall(r"(?s)```yaml\n(.*?)```", RUNBOOK)
    read = yaml.safe_load(text)
    assert all((RULES / name).is_file() for name in read["rule_files"])
    if shutil.which("promtool") is not None:
        for name in read["rule_files"]:
            shutil.copy(RULES / name, tmp_path / name)
        (tmp_path / "prometheus.yml").write_text(text, encoding="utf-8")
        checked = subprocess.run(
            ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
