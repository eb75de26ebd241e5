"""What is in `docker/`. Nothing is built or deployed here; but every file is read as strictly as can be done offline,
and its flags are held against the jobs' own settings. The shell scripts are executed in `test_batch_script.py`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.command_line import parse_config
from pipeline.config import LabelConfig

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
KUBERAY = DOCKER / "kuberay"
IMAGE_FOLDER = "/opt/labelling"
UID = 10001
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY", re.IGNORECASE)


class StrictLoader(yaml.SafeLoader):
    """A key that stands twice is an error, as it is for Kubernetes and Compose."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text: str) -> list[Any]:
    return list(yaml.load_all(text, Loader=StrictLoader))


def parse_label_flags(words: list[str]) -> LabelConfig:
    """The settings that a command in the image stands for: what follows its `jobs/label_inverse.py`."""
    words = [word.replace(f"{IMAGE_FOLDER}/", "") for word in words]
    flags = [part for word in words[words.index("jobs/label_inverse.py") + 1 :] for part in word.split("=", 1)]
    return parse_config(LabelConfig, flags)


def flag(words: list[str], name: str) -> str:
    parts = [part for word in words for part in word.split("=", 1)]
    return parts[parts.index(name) + 1]


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """As in the image, where `configs/` is found from the working directory."""
    monkeypatch.chdir(ROOT)


# The image


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Its instructions in order, as (name, rest)."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines()]


def values(dockerfile: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in dockerfile if instruction == name]


def test_a_job_in_the_image_runs_as_nobody_and_hears_sigterm(dockerfile):
    assert values(dockerfile, "USER") == [f"{UID}:{UID}"]
    assert json.loads(values(dockerfile, "ENTRYPOINT")[0]) == ["tini", "--", "python"], (
        "no shell between signal and job"
    )
    assert values(dockerfile, "STOPSIGNAL") == ["SIGTERM"]
    assert (ROOT / json.loads(values(dockerfile, "CMD")[0])[0]).is_file()
    assert values(dockerfile, "WORKDIR") == [IMAGE_FOLDER]
    environment = " ".join(values(dockerfile, "ENV"))
    assert {"PYTHONUNBUFFERED=1", f"PATH={IMAGE_FOLDER}/.venv/bin:$PATH"} <= set(environment.split())
    assert not SECRET.search(environment + " ".join(values(dockerfile, "ARG")))


def test_dependencies_are_a_layer_of_their_own_below_the_code(dockerfile):
    steps = [rest for name, rest in dockerfile if name in ("RUN", "COPY")]
    syncs = [step for step in steps if "uv sync" in step]
    copies = [step for step in steps if step.endswith(" pipeline")]
    assert [steps.index(step) for step in (syncs[0], copies[0], syncs[1])] == sorted(
        steps.index(step) for step in (*syncs, *copies)
    )
    assert all("--no-dev" in step for step in syncs)
    assert "--no-install-project" in syncs[0]
    assert "--no-install-project" not in syncs[1], "a manifest asks for the installed project's version"


def test_the_image_gets_what_the_repository_has_and_nothing_else(dockerfile):
    sources = {word for copy in values(dockerfile, "COPY") for word in copy.split()[:-1]}
    allowed = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in "#"]
    assert allowed[0] == "*"
    assert {line.removeprefix("!") for line in allowed if line.startswith("!")} == {
        source.replace("uv.loc[k]", "uv.lock") for source in sources
    }
    assert all((ROOT / source).exists() for source in sources - {"uv.loc[k]"})


def test_the_image_has_the_python_that_the_project_wants(dockerfile):
    wanted = (ROOT / ".python-version").read_text().strip()
    assert f"UV_PYTHON=/usr/bin/python{wanted}" in " ".join(values(dockerfile, "ENV"))
    assert any(f" python{wanted} " in run for run in values(dockerfile, "RUN"))


# One machine


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load((DOCKER / "compose.yaml").read_text())[0]


def test_a_key_that_stands_twice_is_seen():
    with pytest.raises(yaml.YAMLError, match="twice: a"):
        load("b: {a: 1, a: 2}")


@pytest.mark.parametrize("path", sorted(DOCKER.rglob("*.y*ml")), ids=lambda path: path.name)
def test_yaml_is_strict(path):
    assert all(load(path.read_text()))


def test_composed_services_are_confined(compose):
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "network_mode", "pid", "ipc", "user"} & set(service), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        secrets = {key: value for key, value in service.get("environment", {}).items() if SECRET.search(key)}
        assert set(secrets.values()) <= {None}, "credentials come from the shell"
    watchers = {name: service for name, service in compose["services"].items() if name != "label"}
    assert all(service["profiles"] == ["monitoring"] for service in watchers.values())
    assert all(re.search(r":v?\d+\.\d+\.\d+$", service["image"]) for service in watchers.values()), "pinned"


def test_the_composed_job_has_gpus_shared_memory_and_time_to_end(compose):
    label = compose["services"]["label"]
    (device,) = label["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert label["shm_size"] == "16gb"
    assert seconds(label["stop_grace_period"]) >= float(flag(label["command"], "--grace_s")) + 20
    assert (
        ROOT / "docker" / label["build"]["context"] / label["build"]["dockerfile"]
    ).resolve() == DOCKER / "Dockerfile"


def test_what_the_composed_job_is_told_is_mounted(compose):
    label = compose["services"]["label"]
    config = parse_label_flags([re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in label["command"]])
    mounts = {mount["target"]: mount.get("read_only", False) for mount in label["volumes"]}
    assert mounts == {"/data": True, "/weights": True, "/action_stats.json": True, "/outputs": False, "/tmp/ray": False}
    assert (config.dataset.root, config.output_dir, config.ray.address) == ("/data", "/outputs", "auto")
    assert config.action_stats_path == "/action_stats.json"
    assert config.engine.checkpoint.startswith("/weights/")
    assert all(mount["bind"] == {"create_host_path": False} for mount in label["volumes"] if mount["type"] == "bind")


def test_prometheus_and_grafana_find_what_they_show(compose):
    services = compose["services"]
    binds = {
        mount["target"]: DOCKER / mount["source"]
        for name in ("prometheus", "grafana")
        for mount in services[name]["volumes"]
        if mount["type"] == "bind"
    }
    assert all(path.exists() for path in binds.values())
    (scrape,) = load(binds["/etc/prometheus/prometheus.yml"].read_text())[0]["scrape_configs"]
    (file,) = scrape["file_sd_configs"][0]["files"]
    assert {"type": "volume", "source": "ray", "target": str(Path(file).parent), "read_only": True} in services[
        "prometheus"
    ]["volumes"]
    (provider,) = load(compose["configs"]["grafana_dashboards"]["content"])[0]["providers"]
    assert list(binds[provider["options"]["path"]].glob("*.json"))
    (source,) = load(compose["configs"]["grafana_datasource"]["content"])[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_compose_itself_accepts_the_file():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker with its compose plugin")
    command = [
        docker,
        "compose",
        "--file",
        str(DOCKER / "compose.yaml"),
        "--profile",
        "monitoring",
        "config",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Kubernetes


@pytest.fixture(scope="module")
def manifests() -> dict[str, list[dict[str, Any]]]:
    """Every object that is applied, by kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in load((KUBERAY / "kustomization.yaml").read_text())[0]["resources"]:
        for manifest in load((KUBERAY / name).read_text()):
            found.setdefault(manifest["kind"], []).append(manifest)
    return found


@pytest.fixture(scope="module")
def rayjob(manifests) -> dict[str, Any]:
    (job,) = manifests["RayJob"]
    return job["spec"]


@pytest.fixture(scope="module")
def templates(rayjob) -> dict[str, dict[str, Any]]:
    cluster = rayjob["rayClusterSpec"]
    return {
        "submitter": rayjob["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
    }


def container_of(template: dict[str, Any]) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    return container


def test_the_applied_objects_are_of_the_kinds_they_say(manifests):
    versions = {kind: {manifest["apiVersion"] for manifest in found} for kind, found in manifests.items()}
    assert versions == {
        "Namespace": {"v1"},
        "PersistentVolumeClaim": {"v1"},
        "NetworkPolicy": {"networking.k8s.io/v1"},
        "RayJob": {"ray.io/v1"},
    }
    applied = load((KUBERAY / "kustomization.yaml").read_text())[0]
    assert set(applied["resources"]) == {p.name for p in KUBERAY.iterdir()} - {"kustomization.yaml"}
    assert applied["namespace"] == manifests["Namespace"][0]["metadata"]["name"]


def test_the_rayjob_has_only_fields_that_kuberay_knows(rayjob):
    """ray.io/v1 as of KubeRay 1.6: an unknown field would be dropped, or refused, by the API server."""
    cluster = rayjob["rayClusterSpec"]
    assert set(rayjob) <= {
        *("entrypoint", "runtimeEnvYAML", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "suspend"),
        *("ttlSecondsAfterFinished", "submitterPodTemplate", "submitterConfig", "rayClusterSpec", "metadata"),
        *("activeDeadlineSeconds", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId"),
    }
    assert set(cluster) <= {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"}
    assert set(cluster["headGroupSpec"]) <= {"serviceType", "rayStartParams", "template", "enableIngress"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_rayjob_speaks_with_the_ray_that_is_installed_here(rayjob):
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = (dependency.split("==")[1] for dependency in dependencies if dependency.startswith("ray["))
    assert rayjob["rayClusterSpec"]["rayVersion"] == pinned


def test_a_failed_run_is_started_again_and_a_finished_one_gives_its_gpus_back(rayjob):
    assert rayjob["backoffLimit"] > 0
    assert rayjob["shutdownAfterJobFinishes"] is True
    assert rayjob["ttlSecondsAfterFinished"] == 0


@pytest.mark.parametrize("name", ["submitter", "head", "loaders", "engines"])
def test_pods_are_as_restricted_as_kubernetes_knows_how(templates, manifests, name):
    pod, container = templates[name]["spec"], container_of(templates[name])
    assert pod["automountServiceAccountToken"] is False
    assert {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    for context in (security, pod["securityContext"]):
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not [volume for volume in pod.get("volumes", ()) if "hostPath" in volume]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"])
    assert container["image"] == load((KUBERAY / "kustomization.yaml").read_text())[0]["images"][0]["name"]
    (policy,) = manifests["NetworkPolicy"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= templates[name]["metadata"]["labels"].items()
    enforced = manifests["Namespace"][0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


@pytest.mark.parametrize("name", ["head", "loaders", "engines"])
def test_every_ray_pod_sees_the_same_folders(templates, manifests, rayjob, name):
    volumes = {volume["name"]: volume for volume in templates[name]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container_of(templates[name])["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    claims = {
        volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume
    }
    assert claims == {claim["metadata"]["name"] for claim in manifests["PersistentVolumeClaim"]}
    assert mounts["/data"]["readOnly"] is mounts["/weights"]["readOnly"] is True
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    config = parse_label_flags(shlex.split(rayjob["entrypoint"]))
    for place in (config.dataset.root, config.engine.checkpoint, config.action_stats_path, config.output_dir):
        assert f"/{Path(place).parts[1]}" in mounts, place
    assert not mounts["/outputs"].get("readOnly")


def test_only_whoever_has_the_token_reaches_ray_and_only_from_within(rayjob, manifests):
    cluster = rayjob["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    (policy,) = manifests["NetworkPolicy"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(entry["from"] for entry in policy["spec"]["ingress"])


def test_engines_go_where_the_gpus_are_and_nothing_goes_to_the_head(rayjob):
    cluster, words = rayjob["rayClusterSpec"], shlex.split(rayjob["entrypoint"])
    config = parse_label_flags(words)
    head = cluster["headGroupSpec"]["rayStartParams"]
    assert (head["num-cpus"], head["num-gpus"]) == ("0", "0")
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    gpus = int(container_of(groups["engines"]["template"])["resources"]["limits"]["nvidia.com/gpu"])
    # KubeRay hands the text to a shell.
    (resources,) = shlex.split(groups["engines"]["rayStartParams"]["resources"])
    assert json.loads(resources) == {flag(words, "--ray.engine_resource"): gpus}
    assert "resources" not in groups["loaders"]["rayStartParams"]
    assert (config.engine.device, config.ray.num_engines) == ("cuda", gpus * groups["engines"]["replicas"])
    cpus = int(container_of(groups["loaders"]["template"])["resources"]["limits"]["cpu"])
    assert config.ray.engine_resource in json.loads(resources)
    assert config.ray.num_loaders <= cpus * groups["loaders"]["replicas"]
    assert config.ray.address == "auto"


def test_everyone_who_stops_a_job_waits_longer_than_the_one_he_stops(rayjob, templates):
    (environment,) = load(rayjob["runtimeEnvYAML"])
    head = templates["head"]
    command = container_of(head)["lifecycle"]["preStop"]["exec"]["command"]
    compile(command[2], "preStop", "exec")
    (pre_stop_s,) = re.findall(r"monotonic\(\) \+ (\d+)", command[2])
    waits = [
        float(flag(shlex.split(rayjob["entrypoint"]), "--grace_s")),
        int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]),
        int(pre_stop_s),
        head["spec"]["terminationGracePeriodSeconds"],
    ]
    assert waits == sorted(set(waits))


def test_kustomize_accepts_the_folder():
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    done = subprocess.run(["kubectl", "kustomize", str(KUBERAY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = set(re.findall(r"image: (\S+)", done.stdout))
    (image,) = load((KUBERAY / "kustomization.yaml").read_text())[0]["images"]
    assert images == {f"{image['newName']}:{image['newTag']}"}, "every pod has the one image"
