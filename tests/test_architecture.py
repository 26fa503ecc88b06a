"""What keeps the packages apart: imports in a fresh process, documented modules, typed packages, pinned versions."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hw", "amc_env", "agents", "search")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after the statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


HELP = """
import sys
from search.cli import main
sys.argv = ["amc", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        pytest.param("import hw", {"torch", "torchvision", "gymnasium", "stable_baselines3", "ray"}, id="hw"),
        pytest.param("import amc_env", {"torchvision", "stable_baselines3", "ray"}, id="amc_env"),
        pytest.param("import agents", {"torchvision", "ray"}, id="agents"),
        pytest.param(HELP, {"torch", "torchvision", "gymnasium", "stable_baselines3", "ray", "onnx"}, id="amc --help"),
    ],
)
def test_only_what_is_needed_is_loaded(statement: str, unwanted: set[str]) -> None:
    assert loaded_by(statement) & unwanted == set()


WITHOUT_EXTRAS = """
import sys
for name in ("ray", "torchvision", "stable_baselines3", "cmaes", "onnx", "onnxscript", "onnxruntime", "fastapi"):
    sys.modules[name] = None  # importing it fails, as if it were not installed
import gymnasium
env = gymnasium.make("amc_env:Pruning-v0", problem={problem!r}, constraint="fit")
env.reset(seed=0)
terminated = False
while not terminated:
    _, reward, terminated, _, _ = env.step(env.action_space.sample())
assert reward > -1
"""


@pytest.mark.parametrize("problem", ["toy20-v0", "resnet56-cifar10-v0", "digits-v0"])
def test_the_environment_needs_no_extra(problem: str) -> None:
    loaded_by(WITHOUT_EXTRAS.format(problem=problem))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_begins_with_its_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_a_page_gathers_what_differs_from_the_papers() -> None:
    page = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    differing = [path for path in MODULES if "Differences from " in path.read_text(encoding="utf-8")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in differing}
    assert set(re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)) == names


def test_no_module_of_the_standard_library_is_shadowed() -> None:
    assert set(PACKAGES).isdisjoint(sys.stdlib_module_names)


def distribution(requirement: str) -> str:
    """The normalised name at the start of a requirement."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_the_constraints_pin_every_dependency_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][^\s+]*", line)] == []
    pinned = [distribution(line) for line in pins]
    assert len(pinned) == len(set(pinned))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    needed = {distribution(requirement) for requirement in named}
    assert needed - set(pinned) == {project["name"]}  # an extra that names another
