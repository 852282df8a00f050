"""``loopwatch dashboards export``, from a wheel, and the files that it writes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from boards import ROOT
from cli_helpers import free_port, serving, stalls, until

from loopwatch.cli import dashboards, main
from loopwatch.errors import LoopwatchError

DASHBOARDS = ROOT / "dashboards"
COMPOSE = yaml.safe_load((DASHBOARDS / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BOARDS = {f"grafana/loopwatch-{name}.json" for name in ("overview", "loop", "workers", "offload")}


def configuration(name: str) -> Any:
    return yaml.safe_load((DASHBOARDS / "compose" / name).read_text())


def setuptools_version() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_a_wheel_exports_everything(tmp_path: Path) -> None:
    """An unpacked wheel, without a checkout, writes the files of this repository but not their sources."""
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    source.mkdir()
    for name in ("loopwatch", "integrations", "dashboards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), "."]
    if setuptools_version() >= 77:
        build.insert(4, "--no-build-isolation")
    made = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False, timeout=55)
    if "No matching distribution found for setuptools" in made.stderr:
        pytest.skip("no wheel can be built here: setuptools is too old, and no newer one can be had")
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("loopwatch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        shipped = {name for name in archive.namelist() if name.startswith("loopwatch/dashboards/")}
    assert {name for name in shipped if "/source/" in name or "/tests/" in name} == set()

    command = [sys.executable, "-c", "import sys; from loopwatch.cli.main import main; sys.exit(main())"]
    environ = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    target = tmp_path / "monitoring"
    command += ["dashboards", "export", str(target)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = written(target)
    assert found == {name: (DASHBOARDS / name).read_bytes() for name in found}
    assert found.keys() >= BOARDS | {"compose.yaml", "compose/collector.yaml", "compose/service/Dockerfile"}
    assert {"prometheus/alerts.yml", "prometheus/recording.yml", "docs/runbook.md"} <= found.keys()
    assert f"{len(found)} files are in {target}" in done.stdout
    assert len(found) == len(shipped) - 1, "everything in the wheel is exported, except __init__.py"


def test_everything_is_exported(tmp_path: Path) -> None:
    """The export has each file of the folder except code, tests and sources."""
    paths = dashboards.export(tmp_path)
    expected = {
        str(path.relative_to(DASHBOARDS))
        for path in DASHBOARDS.rglob("*")
        if path.is_file() and not {"source", "tests", "__pycache__", "__init__.py"} & set(path.parts)
    }
    assert {str(path.relative_to(tmp_path)) for path in paths} == set(written(tmp_path)) == expected
    assert {str(path.relative_to(tmp_path)) for path in paths if path.suffix == ".json"} == BOARDS


def test_export_keeps_changed_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second export changes nothing; if a file was changed, nothing is written unless --force is given."""
    assert main.main(["dashboards", "export", str(tmp_path)]) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main.main(["dashboards", "export", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    mine = tmp_path / "prometheus" / "alerts.yml"
    mine.write_text("groups: []\n")
    (tmp_path / "compose.yaml").unlink()
    (tmp_path / "own.json").write_text("{}")
    capsys.readouterr()
    assert main.main(["dashboards", "export", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"loopwatch: {mine}: differs from what would be written; ") and "--force" in err
    assert mine.read_text() == "groups: []\n"
    assert not (tmp_path / "compose.yaml").exists(), "nothing is written where something is refused"

    assert main.main(["dashboards", "export", "--force", str(tmp_path)]) == 0
    assert mine.read_bytes() == (DASHBOARDS / "prometheus" / "alerts.yml").read_bytes()
    assert (tmp_path / "compose.yaml").exists()
    assert (tmp_path / "own.json").read_text() == "{}"


@pytest.mark.parametrize("arguments", [["export"], ["export", "a", "b"], ["export", "--frce", "a"], ["nope"], []])
def test_bad_command_lines_are_errors_of_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid command line is an error of one line that points to the help."""
    with pytest.raises(SystemExit) as ended:
        main.main(["dashboards", *arguments])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("loopwatch: ") and err.count("\n") == 1 and "--help" in err


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """A file in place of a folder is named in an error of one line."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(
        LoopwatchError, match=r"taken.*: cannot be written: (Not a directory|File exists); give another"
    ):
        dashboards.export(tmp_path / "taken")


def test_mounts_exist() -> None:
    """Each file and folder that compose.yaml mounts or builds is in the export, and is mounted read-only."""
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source, target, mode = volume.split(":")
            assert source.startswith("./") and ".." not in source and target.startswith("/") and mode == "ro", name
            assert (DASHBOARDS / source).exists(), source
        if "build" in service:
            assert (DASHBOARDS / service["build"] / "Dockerfile").is_file()


def test_images_are_pinned_and_ports_are_local() -> None:
    """No image is "latest"; no port is reachable from outside the machine; services only depend on existing ones."""
    for name, service in SERVICES.items():
        assert ("image" in service) != ("build" in service), name
        if "image" in service:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), service["image"]
        for port in service.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port
        assert set(service.get("depends_on", ())) <= set(SERVICES)
    assert {"shop", "collector", "prometheus", "alertmanager", "tempo", "grafana"} <= set(SERVICES)


def ports_of(name: str) -> set[int]:
    """Return the ports that a service of the compose file listens on, according to its own configuration."""
    if name == "collector":
        collector = configuration("collector.yaml")
        protocols = collector["receivers"]["otlp"]["protocols"].values()
        offered = [item["endpoint"] for item in (*protocols, collector["exporters"]["prometheus"])]
        return {int(endpoint.rpartition(":")[2]) for endpoint in offered}
    if name == "tempo":
        tempo = configuration("tempo.yaml")
        receiver = tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
        return {tempo["server"]["http_listen_port"], int(receiver.rpartition(":")[2])}
    if name.startswith("shop"):
        command, environ = SERVICES[name]["command"], SERVICES[name]["environment"]
        return {int(command[command.index("--port") + 1]), int(environ.get("LOOPWATCH_PROMETHEUS_PORT", 0))}
    return {"prometheus": {9090}, "alertmanager": {9093}, "grafana": {3000}}[name]  # what these images listen on


def test_addresses_refer_to_ports_of_services() -> None:
    """Each host:port in the compose file and the configurations is a service and one of its ports."""
    texts = [path.read_text() for path in (DASHBOARDS / "compose").rglob("*.y*ml")] + [json.dumps(COMPOSE)]
    names = "|".join(SERVICES)
    found = {
        (host, int(port)) for text in texts for host, port in re.findall(rf"(?<![\w.-])(?<!\w/)({names}):(\d+)", text)
    }
    # Including the endpoint of Alertmanager and data sources.
    assert {("collector", 8889), ("tempo", 4317), ("tempo", 3200), ("alertmanager", 9093)} <= found
    for host, port in found:
        assert port in ports_of(host), f"{host}:{port}"


def test_collector_configuration() -> None:
    """Pipelines use configured components; metrics keep names and exemplars; no configured component is unused."""
    collector = configuration("collector.yaml")
    pipelines = collector["service"]["pipelines"]
    assert set(pipelines) == {"metrics", "traces", "logs"}
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline[kind]}
        assert used == set(collector[kind])
    exporter = collector["exporters"]["prometheus"]
    assert exporter["add_metric_suffixes"] and exporter["enable_open_metrics"]
    assert pipelines["metrics"]["exporters"] == ["prometheus"]


def test_prometheus_keeps_the_services_names() -> None:
    """Metrics from the collector keep their job and instance; rules are loaded; Grafana knows the scrape interval."""
    prometheus = configuration("prometheus.yml")
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    assert jobs["collector"]["honor_labels"] is True
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["prometheus"]["volumes"])
    (rules,) = prometheus["rule_files"]
    assert mounts[rules.removesuffix("/*.yml")] == "./prometheus"
    sources = {source["uid"]: source for source in configuration("grafana/datasources.yaml")["datasources"]}
    assert sources["prometheus"]["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"] == "5s"
    (exemplars,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars == {"name": "trace_id", "datasourceUid": "tempo"}
    assert sources["tempo"]["type"] == "tempo"
    (provider,) = configuration("grafana/dashboards.yaml")["providers"]
    grafana = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    assert grafana[provider["options"]["path"]] == "./grafana"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DASHBOARDS / "grafana" / Path(home).name).is_file() and home.startswith(provider["options"]["path"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    """Prometheus' own check passes, including the mounted rules."""
    config = configuration("prometheus.yml")
    config["rule_files"] = [str(DASHBOARDS / "prometheus" / "*.yml")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    check = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") >= 2


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed (Debian: prometheus-alertmanager)")
def test_amtool_accepts_the_configuration() -> None:
    """Alertmanager's own check passes."""
    checked = ["amtool", "check-config", str(DASHBOARDS / "compose" / "alertmanager.yml")]
    assert subprocess.run(checked, capture_output=True, check=False).returncode == 0


@pytest.mark.long
def test_the_example_service_blocks_its_loop(tmp_path: Path) -> None:
    """The service of the compose file starts, its visitors request its routes, and loopwatch finds what blocks."""
    folder = DASHBOARDS / "compose" / "service"
    visitors = runpy.run_path(str(folder / "visitors.py"), run_name="visitors")
    routes = set(re.findall(r'@app\.get\("([^"]+)"\)', (folder / "shop.py").read_text()))
    assert {re.sub(r"/\d+$", "/{number}", path) for path in visitors["SECONDS_BETWEEN"]} == routes

    port = free_port()
    command = [sys.executable, "-m", "loopwatch", "run", "--journal", str(tmp_path / "stalls.jsonl"), "-m", "uvicorn"]
    command += ["--app-dir", str(folder), "shop:app", "--port", str(port), "--log-level", "warning"]
    with serving(command, tmp_path):
        until(lambda: visitors["visit"](f"http://127.0.0.1:{port}/ping"))
        for path in ("/legacy", "/convert", "/mail", "/zombie"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                assert answer.status == 200
        until(lambda: len(stalls(tmp_path / "stalls.jsonl")) >= 2)
    causes = {stall.culprit.function: stall.cause for stall in stalls(tmp_path / "stalls.jsonl") if stall.culprit}
    assert causes["legacy"] == "sleep"
    assert "convert" in causes
