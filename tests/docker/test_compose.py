"""docker/: what the Dockerfile and compose.yaml promise, read from the files; docker/test runs them."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
DOCKER = PROJECT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
TEXT = (DOCKER / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
SECRETS = {"ray_token", "postgres_password", "mlflow_admin_password", "mlflow_secret_key"}


def tool(name):
    """The path of a developers' tool; skips the test without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: ./dev setup brings it")
    return found


def run(*command):
    # Without what a developer may have set for compose.yaml.
    environment = {name: value for name, value in os.environ.items() if f"${{{name}:-" not in TEXT}
    return subprocess.run(command, cwd=DOCKER, env=environment, capture_output=True, text=True, timeout=120)


# ── the tools' own opinion ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_dockerfile_passes_its_linter():
    done = run(tool("hadolint"), "--no-color", "Dockerfile")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids=lambda files: files[-1])
def test_compose_takes_its_files(files):
    flags = [flag for file in files for flag in ("--file", file)]
    done = run(tool("docker-compose"), *flags, "--profile", "driver", "config", "--quiet")
    assert done.returncode == 0, done.stderr


def test_compose_refuses_a_key_that_is_wrong(tmp_path):
    (tmp_path / "compose.yaml").write_text((DOCKER / "compose.yaml").read_text().replace("healthcheck:", "health:", 1))
    done = run(tool("docker-compose"), "--file", str(tmp_path / "compose.yaml"), "config", "--quiet")
    assert done.returncode != 0


def test_the_gpu_override_gives_devices_to_those_who_compute():
    done = run(
        tool("docker-compose"), "--file", "compose.yaml", "--file", "compose.gpu.yaml", "--profile", "driver", "config"
    )
    services = yaml.safe_load(done.stdout)["services"]
    has = {name for name, each in services.items() if "reservations" in each["deploy"].get("resources", {})}
    assert has == {"ray-worker", "driver"}
    images = {name: (each["image"], each["build"]["target"]) for name, each in services.items()}
    assert images.pop("postgres") == ("autopeft:postgres", "postgres")
    assert set(images.values()) == {("autopeft:gpu", "gpu")}  # one build of Ray and torch in the whole cluster


# ── compose.yaml ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_services_are_these():
    assert set(SERVICES) == {"ray-head", "ray-worker", "mlflow", "postgres", "driver"}


@pytest.mark.parametrize("name", SERVICES)
class TestEachService:
    def test_publishes_ports_on_loopback_only(self, name):
        for port in SERVICES[name].get("ports", []):
            assert str(port).startswith("127.0.0.1:"), port

    def test_is_on_the_internal_network(self, name):
        assert "inside" in SERVICES[name]["networks"]
        assert COMPOSE["networks"]["inside"]["internal"] is True
        assert "network_mode" not in SERVICES[name]
        # Another network is only for a port that is published.
        assert SERVICES[name]["networks"] == ["inside"] or SERVICES[name]["ports"]

    def test_has_a_limit_of_memory(self, name):
        limit = SERVICES[name]["deploy"]["resources"]["limits"]["memory"]
        assert re.fullmatch(r"(\$\{\w+:-)?\d+[gm]\}?", limit)

    def test_starts_again_unless_it_is_one_command(self, name):
        assert SERVICES[name]["restart"] == ("no" if name == "driver" else "unless-stopped")
        assert (SERVICES[name].get("profiles") == ["driver"]) is (name == "driver")

    def test_has_a_health_check(self, name):
        if name == "driver":  # the image's own
            assert re.search(r"^HEALTHCHECK .*autopeft", DOCKERFILE, re.MULTILINE)
            return
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"

    def test_gives_no_more_rights_than_it_needs(self, name):
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "pid", "ipc", "user"} & set(SERVICES[name])

    def test_has_a_pinned_image_that_is_built_here(self, name):
        image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", SERVICES[name]["image"])
        assert re.fullmatch(r"autopeft:(cpu|postgres)", image)
        assert SERVICES[name]["build"]["target"] == image.partition(":")[2]

    def test_mounts_secrets_as_files_that_are_declared(self, name):
        assert set(SERVICES[name].get("secrets", [])) <= SECRETS
        for key, value in SERVICES[name].get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", key):
                assert value.startswith("/run/secrets/"), key


def test_who_reads_which_secret():
    readers = {secret: {n for n, each in SERVICES.items() if secret in each.get("secrets", [])} for secret in SECRETS}
    assert readers == {
        "ray_token": {"ray-head", "ray-worker", "driver"},
        "postgres_password": {"postgres", "mlflow"},
        "mlflow_admin_password": {"mlflow", "driver"},
        "mlflow_secret_key": {"mlflow"},
    }
    assert set(COMPOSE["secrets"]) == SECRETS
    assert all(set(each) == {"file"} for each in COMPOSE["secrets"].values())


def test_no_password_stands_in_a_file():
    for path in [DOCKER / "Dockerfile", *DOCKER.glob("*.yaml"), *(DOCKER / "bin").iterdir()]:
        for line in path.read_text().splitlines():
            found = re.search(r"(?i)(password|passwd|token|secret_key)\s*[:=]\s*(?P<value>[^\s,})]+)", line)
            value = found["value"].strip("\"'") if found else ""
            reference = re.match(r"\$\(cat$|\$\{|/run/secrets/|secret\(|\{file|token$", value)
            assert not value or reference, f"{path}: {line}"


def test_mlflow_answers_to_its_own_names_only_and_runs_no_jobs():
    service = SERVICES["mlflow"]
    hosts = dict(word.split("=", 1) for word in service["command"] if "=" in word)["--allowed-hosts"].split(",")
    assert hosts == ["mlflow:5000", "localhost:*", "127.0.0.1:*"]
    assert service["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "basic-auth" in (DOCKER / "bin/mlflow-server").read_text()


def test_ray_asks_for_the_token_everywhere():
    for name in ("ray-head", "ray-worker", "driver"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"


# ── the images ──────────────────────────────────────────────────────────────────────────────────────────────────────


def stages():
    """Name of each stage → its text."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", ["cpu", "gpu", "postgres"])
def test_the_user_of_an_image_is_not_root(name):
    users = re.findall(r"^USER (.*)$", stages()[name], re.MULTILINE)
    assert users[-1] == "${UID}"  # a number, which Kubernetes can tell from root
    assert re.search(r"^ARG UID=[1-9]\d+$", DOCKERFILE, re.MULTILINE)


def test_the_base_is_an_argument_and_pinned():
    assert re.search(r"^ARG BASE_IMAGE=debian:bookworm-\d{8}-slim$", DOCKERFILE, re.MULTILINE)
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) - {"${BASE_IMAGE}"} <= set(stages())


def test_the_images_of_cpu_and_gpu_differ_in_their_torch_only():
    lines = {name: stages()[name].split("# ──")[0].strip().splitlines() for name in ("cpu", "gpu")}
    *torch, one, two, three = lines["cpu"]
    assert [one, two, three] == lines["gpu"][-3:] == ["COPY --from=files /files /", "ARG UID", "USER ${UID}"]
    assert "--index-url" in "".join(torch) and "--index-url" not in "".join(lines["gpu"])
    assert re.findall(r"^FROM packages AS (\S+)$", DOCKERFILE, re.MULTILINE) == ["files", "cpu", "gpu"]


def test_everything_is_installed_as_it_was_tested_and_once():
    lines = re.findall(r"pip install .*", DOCKERFILE)
    assert len([line for line in lines if "requirements.txt" in line]) == 1
    assert len([line for line in lines if "/src" in line]) == 1
    for line in lines:
        others = ("--requirement /wanted/torch.txt", "--prefix /files/opt/venv /src")  # the pinned torch, autopeft
        assert "--constraint /wanted/constraints.txt" in line or "--no-deps" in line
        assert "--constraint" in line or line.removesuffix(" \\").endswith(others)


def test_what_is_installed_first_is_what_pyproject_asks_for():
    done = subprocess.run(
        [sys.executable, DOCKER / "requirements.py", PROJECT / "pyproject.toml", "server"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = done.stdout.splitlines()
    assert any(line.startswith("torch>=") for line in wanted)
    assert any(line.startswith("hatchling") for line in wanted)
    assert any(line.startswith("psycopg") for line in wanted)
    assert not any(line.startswith("pytest") for line in wanted)


def test_the_builder_sees_only_what_it_needs():
    lines = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert allowed == {
        "autopeft", "search_spaces", "docker/bin", "docker/requirements.py", "pyproject.toml", "constraints.txt",
        "README.md", "LICENSE",
    }  # fmt: skip


# ── prepare ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prepare_makes_secrets_once_for_the_user_of_the_image(tmp_path):
    command = [str(DOCKER / "prepare"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(first) == SECRETS
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in first.values()) and len(set(first.values())) == 4
    environment = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    for path in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == int(environment["AUTOPEFT_UID"]) > 0
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == first


def test_what_prepare_makes_is_ignored_by_git():
    ignored = (PROJECT / ".gitignore").read_text().splitlines()
    assert {"docker/.env", "docker/secrets/", "docker/files/"} <= set(ignored)
