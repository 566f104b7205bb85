"""The files of a deployment: valid by their own schemas, in line with the settings, and safe by default."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from app import reference
from app.settings import Ledger, Whisper
from app.speech import memory
from tests.support import compose
from tests.support.compose import FILE
from tests.support.servers import ROOT, service_missing

KUBERNETES = ROOT / "deploy/kubernetes"
SYSTEMD = ROOT / "deploy/systemd"
SETTINGS = {name for _, name, _ in reference.fields()}
GRACE = Ledger(_env_file=None).shutdown_grace.total_seconds()
# What a stopping worker needs beside its grace: to give back what runs, and to leave.
MARGIN = 10
# What the compose file itself is told, beside Toban's settings.
OF_THE_FILE = {
    "TOBAN_IMAGE", "TOBAN_TARGET", "TOBAN_BIND", "TOBAN_NETWORK", "TOBAN_AUDIO", "TOBAN_MODELS", "WHISPER_MODELS",
    "POSTGRES_PASSWORD", "PGRST_JWT_SECRET",
}  # fmt: skip


def services() -> dict[str, dict[str, Any]]:
    return dict(compose.filled(compose.compose(), {})["services"])


def ours() -> dict[str, dict[str, Any]]:
    return {name: one for name, one in services().items() if "build" in one}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / command[0]
    return subprocess.run([str(program), *command[1:]], capture_output=True, text=True, timeout=60, check=False)


# --- Docker -----------------------------------------------------------------------------------------------------------


def test_the_files_are_valid() -> None:
    answer = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE))
    assert answer.returncode == 0, answer.stdout
    answer = run("hadolint", str(ROOT / "Dockerfile"))
    assert answer.returncode == 0, answer.stdout


def test_every_variable_is_known_and_documented() -> None:
    """A name that nobody reads would be a setting without an effect."""
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    told = set(compose.variables(compose.compose()))
    assert told <= SETTINGS | OF_THE_FILE
    assert {name for name in OF_THE_FILE if f"`{name}`" not in page} == set()
    for name, one in ours().items():
        assert one["environment"].keys() <= SETTINGS, name
    example = (ROOT / "deploy/selfhosted.env").read_text(encoding="utf-8")
    filled_in = set(re.findall(r"(?m)^(\w+)=", example))
    assert filled_in <= SETTINGS | OF_THE_FILE | {"COMPOSE_PROFILES"}


def test_every_service_is_looked_after() -> None:
    for name, one in services().items():
        assert re.search(r":v?\d+\.\d+\.\d+|:18\.1$|:local$", one["image"]), name
        assert one["restart"] in {"unless-stopped", "on-failure"}, name
        assert one["logging"]["options"]["max-size"], name
        assert "no-new-privileges:true" in one["security_opt"], name
        # PostgREST's image has nothing to check with; the other one ends.
        assert "healthcheck" in one or name in {"postgrest", "migrate"}, name
        for volume in one.get("volumes", []):
            source = volume.partition(":")[0] if isinstance(volume, str) else ""
            assert not source or source.startswith(("/", ".")) or source in compose.compose()["volumes"], (name, source)
    for name, one in ours().items():
        assert one["read_only"], name
        assert one["cap_drop"] == ["ALL"], name
        assert one["env_file"] == ".env", name


def test_nothing_is_open_to_the_world_by_default() -> None:
    published = {name: one["ports"] for name, one in services().items() if "ports" in one}
    assert published.keys() == {"web", "flower", "postgrest", "s3"}
    for name, ports in published.items():
        assert all(port.startswith("127.0.0.1:") for port in ports), name


def test_the_pages_ports_are_what_is_published() -> None:
    web = ours()["web"]
    listening = [web["environment"]["WEB_PORT"], *web["environment"]["WEB_EXTRA_PORTS"].split(",")]
    assert [port.rpartition(":")[2] for port in web["ports"]] == listening
    assert web["networks"]["default"]["aliases"] == ["api-gpt-v1"]


def test_a_stop_leaves_running_work_its_grace() -> None:
    for name, one in ours().items():
        if name.startswith("worker"):
            assert float(one["stop_grace_period"].removesuffix("s")) >= GRACE + MARGIN, name
    for document in documents():
        if document["kind"] == "Deployment" and document["metadata"]["name"].startswith("worker"):
            assert document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= GRACE + MARGIN
    unit = (SYSTEMD / "toban-worker@.service").read_text(encoding="utf-8")
    assert float(found(r"^TimeoutStopSec=(\d+)$", unit)) >= GRACE + MARGIN


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, flags=re.MULTILINE)
    assert match, pattern
    return match[1]


def test_the_default_model_fits_into_the_whisper_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two cores, under the limit that every way of running it sets."""
    unit = (SYSTEMD / "toban-worker@whisper.service.d/memory.conf").read_text(encoding="utf-8")
    [pod] = [one for one in documents() if one["kind"] == "Deployment" and one["metadata"]["name"] == "worker-whisper"]
    [container] = pod["spec"]["template"]["spec"]["containers"]
    limits = {
        ours()["worker-whisper"]["mem_limit"].upper().replace("G", "GiB"),
        found(r"^MemoryMax=(.*)$", unit) + "iB",
        container["resources"]["limits"]["memory"] + "B",
    }
    assert limits == {"2GiB"}
    monkeypatch.setattr(memory, "_container_limit", lambda: 2 * 1024**3)
    assert memory.plan(Whisper(_env_file=None), 2).children == 2


def test_the_dockerfile_has_what_the_others_name() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"(?m)^FROM \S+ AS (\S+)$", text)
    assert {one["build"]["target"] for one in ours().values()} | {"toban-torch"} <= set(stages)
    assert stages[-1] == "toban", "the target of a plain build"
    last = {stage: text.split(f" AS {stage}\n")[1].split("\nFROM ")[0] for stage in ("toban", "toban-torch")}
    assert all("\nUSER 10001:10001\n" in stage for stage in last.values())
    for line in re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", text):
        assert all((ROOT / source).exists() for source in line.split()), line
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert found(r"^ARG TORCH=(.*)$", text) == found(r"^TORCH \?= torch==(.*)$", makefile)


def test_the_locks_have_every_library_of_the_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["openai-whisper"]
    for name, wanted in {
        "requirements.lock": project["dependencies"],
        "requirements-openai-whisper.lock": [*project["dependencies"], *extra],
    }.items():
        text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
        locked = dict(re.findall(r"(?m)^([a-z0-9.-]+)==([^ ]+)", text))
        for requirement in map(Requirement, wanted):
            version = locked.get(re.sub(r"[._-]+", "-", requirement.name).lower())
            assert version, f"{requirement} is not in {name}: make lock"
            assert requirement.specifier.contains(version), f"{requirement.name} {version} in {name}: make lock"
        assert "://" not in text
        assert text.count("==") <= text.count("--hash=sha256:")


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def documents() -> Iterator[dict[str, Any]]:
    """Every resource that the kustomization has."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))
    for file in kustomization["resources"]:
        yield from yaml.safe_load_all((KUBERNETES / file).read_text(encoding="utf-8"))


def test_the_resources_are_valid() -> None:
    secret = yaml.safe_load((KUBERNETES / "secret.example.yaml").read_text(encoding="utf-8"))
    resources = [*documents(), secret]
    assert {one["kind"] for one in resources} >= {"Deployment", "Service", "PodDisruptionBudget", "ConfigMap", "Secret"}
    for resource in resources:
        kubernetes_validate.validate(resource, "1.33", strict=True)
    assert {path.name for path in KUBERNETES.iterdir()} == {
        "kustomization.yaml", "secret.example.yaml", "keda.yaml",
        *yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))["resources"],
    }  # fmt: skip


def test_the_pods_run_what_the_compose_file_runs() -> None:
    secret = yaml.safe_load((KUBERNETES / "secret.example.yaml").read_text(encoding="utf-8"))
    resources = [*documents(), secret]
    told = [one.get("data", one.get("stringData")) for one in resources if one["kind"] in {"ConfigMap", "Secret"}]
    assert {name for values in told for name in values} <= SETTINGS
    deployments = {one["metadata"]["name"]: one for one in resources if one["kind"] == "Deployment"}
    assert deployments.keys() == ours().keys() - {"migrate"}
    budgets = {one["metadata"]["name"] for one in resources if one["kind"] == "PodDisruptionBudget"}
    assert budgets == deployments.keys() - {"flower"}
    for name, one in deployments.items():
        pod = one["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["command"] == ours()[name]["command"]
        env = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        assert env == {key: value for key, value in ours()[name]["environment"].items() if key in env}
        assert not pod["enableServiceLinks"], "FLOWER_PORT=tcp://… would be taken for the setting"
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["livenessProbe"]
        if "exec" in container["livenessProbe"]:
            assert container["livenessProbe"]["exec"]["command"] == ours()[name]["healthcheck"]["test"][1:]


def test_workers_are_scaled_by_what_the_ledger_counts() -> None:
    """KEDA's own schema is not at hand here: what is checked is what its documentation asks of a prometheus trigger."""
    deployments = {one["metadata"]["name"]: one["spec"] for one in documents() if one["kind"] == "Deployment"}
    scaled = list(yaml.safe_load_all((KUBERNETES / "keda.yaml").read_text(encoding="utf-8")))
    assert [one["metadata"]["name"] for one in scaled] == ["worker-whisper", "worker-gpt"]
    for one in scaled:
        assert (one["apiVersion"], one["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
        target = one["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in deployments[target], "two would decide how many there are"
        assert 0 < one["spec"]["minReplicaCount"] < one["spec"]["maxReplicaCount"]
        [trigger] = one["spec"]["triggers"]
        assert trigger["type"] == "prometheus"
        assert {"serverAddress", "query", "threshold"} <= trigger["metadata"].keys()
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert f'toban_items_due{{queue="{target.removeprefix("worker-")}"}}' in trigger["metadata"]["query"]


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_the_units_are_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        service_missing("no systemd-analyze; Debian's package systemd has it")
    shutil.copytree(SYSTEMD, tmp_path, dirs_exist_ok=True)
    units = sorted(tmp_path.glob("*.service"))
    for unit in units:
        here = unit.read_text(encoding="utf-8").replace("/opt/toban/bin", str(Path(sys.executable).parent))
        unit.write_text(here, encoding="utf-8")
    names = [unit.name for unit in units if "@" not in unit.name]
    names += [f"toban-worker@{queue}.service" for queue in ("whisper", "gpt", "default")]
    answer = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in (*names, "toban.target"))],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    about_ours = [line for line in answer.stderr.splitlines() if "toban" in line]
    assert (answer.returncode, about_ours) == (0, [])


def test_the_units_run_what_the_compose_file_runs() -> None:
    started = {
        unit.name: found(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8")) for unit in SYSTEMD.glob("*.service")
    }
    for name, one in ours().items():
        kind, _, queue = name.partition("-")
        unit = f"toban-{kind}{'@' if queue else ''}.service"
        if name != "migrate":
            line = started[unit].replace("%i", queue).replace("%%", "%")
            assert line == f"/opt/toban/bin/{' '.join(one['command'])}"
    assert len(started) == 4
    for unit in started:
        text = (SYSTEMD / unit).read_text(encoding="utf-8")
        assert "MemoryMax=" in text, unit
    worker = (SYSTEMD / "toban-worker@.service").read_text(encoding="utf-8")
    # By default every child is told to stop as well, and one that runs out of memory stops them all.
    assert "KillMode=mixed\nOOMPolicy=continue\n" in worker
