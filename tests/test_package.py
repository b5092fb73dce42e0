"""The package as a stranger gets it: what is in a wheel, what an import does, and which way its floors point."""

from __future__ import annotations

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"kernels": 0, "configs": 0, "blocks": 1, "zoo": 2, "train": 3, "export": 3, "bench": 3}
TOP = 4
ABOVE_ALL = {"zoo/cli.py", "__main__.py", "__init__.py", "zoo/openmmlab.py"}  # the command, and the face
NOT_PACKAGED = {"tests", "build", "dist", "demo", "runs", "exports"}
DENSE = ("mmdet", "mmseg")  # folders of configs: MMEngine reads their files, nothing imports them
MAX_LINES = 400


def sources() -> list[Path]:
    """Modules of the package, relative to the root."""
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*.py"))
    found = (p for p in found if p.parts[:1] != ("configs",) or p.parts[1] not in DENSE)
    return sorted(p for p in found if p.parts[0] not in NOT_PACKAGED and not p.parts[0].startswith("."))


def package_data() -> list[Path]:
    """Recipes, the trained models with their cards, and configs for mmdetection and mmsegmentation."""
    configs = ROOT / "configs"
    dense = [p for kind in DENSE for p in configs.glob(f"{kind}/**/*.py")]
    return [*configs.glob("recipes/*.yaml"), *(p for p in configs.glob("trained/*/*") if p.is_file()), *dense]


def listed_packages() -> list[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["options"]["packages"].split()


# what is installed


def test_packages_are_the_folders_on_disk() -> None:
    folders = {".".join(("mixzoo", *p.parent.parts)) for p in sources()}
    assert sorted(listed_packages()) == sorted(folders)


def test_every_package_has_an_init() -> None:
    missing = [f for f in {p.parent for p in sources()} if not (ROOT / f / "__init__.py").is_file()]
    assert not missing


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built from a copy of the tree, so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = [*sources(), *(Path(n) for n in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "py.typed"))]
    tracked += [p.relative_to(ROOT) for p in package_data()]
    tracked += [p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*.py")]
    for path in tracked:
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / "tree" / path)
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=folder / "tree", check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


def test_only_mixzoo_lands_at_top_level(wheel_names: list[str]) -> None:
    assert {n.split("/")[0] for n in wheel_names if ".dist-info/" not in n} == {"mixzoo"}


def test_wheel_holds_every_module_and_no_test(wheel_names: list[str]) -> None:
    data = {f"mixzoo/{p.relative_to(ROOT).as_posix()}" for p in package_data()}
    modules = sorted(n for n in wheel_names if n.endswith(".py") and n not in data)
    assert modules == sorted(f"mixzoo/{p.as_posix()}" for p in sources())
    assert not [n for n in wheel_names if "tests" in n.split("/")]


def test_wheel_holds_the_package_data(wheel_names: list[str]) -> None:
    data = {f"mixzoo/{p.relative_to(ROOT).as_posix()}" for p in package_data()}
    known = ("recipes/van.yaml", "trained/shvit_fashion/model.safetensors", "mmdet/_base_/models/retinanet.py")
    assert {f"mixzoo/configs/{name}" for name in known} <= data
    assert {"mixzoo/py.typed", *data} <= set(wheel_names)


def test_wheel_has_the_command_and_the_licence(wheel_names: list[str]) -> None:
    assert any(n.endswith(".dist-info/entry_points.txt") for n in wheel_names)
    assert any(n.endswith("LICENSE") for n in wheel_names)


def test_constraints_are_exact_and_cover_the_requirements() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins if "==" in line}
    assert not [line for line in pins if "==" not in line]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = [
        config["options"]["install_requires"],
        *(extras[e] for e in ("onnx", "train", "segmentation", "openmmlab", "dev")),
    ]
    names = {line.split(">")[0].lower().replace("_", "-") for text in wanted for line in text.split()}
    assert (
        not {name for name in names if not name.startswith("mixzoo[")} - pinned
    )  # another extra is in the list itself


# what an import does


def run_python(code: str) -> str:
    # a neutral environment: nothing of the test runner's, and no thread settings that print warnings
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.sep)
    assert not done.stderr.strip(), done.stderr
    return done.stdout


def test_import_is_silent_and_brings_no_optional_package() -> None:
    code = "import mixzoo, json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    loaded = set(json.loads(run_python(code)))  # anything else that was printed would not be JSON
    assert "timm" in loaded
    optional = {
        "onnx",
        "onnxscript",
        "onnxruntime",
        "sklearn",
        "matplotlib",
        "pydantic",
        "typer",
        "rich",
        "mmcv",
        "mmdet",
    }
    assert not loaded & optional


def test_import_replaces_nothing_of_timms() -> None:
    code = """
import json, timm
from timm.models import _registry as r
snap = lambda: {n: (f"{e.__module__}.{e.__qualname__}", id(e)) for n, e in r._model_entrypoints.items()}
before, cfgs = snap(), {k: repr(v) for k, v in r._model_pretrained_cfgs.items()}
names = timm.list_models(); pretrained = timm.list_pretrained()
import mixzoo
after = snap()
print(json.dumps({
    "changed": [n for n in before if after.get(n) != before[n]],
    "cfgs": [k for k in cfgs if repr(r._model_pretrained_cfgs.get(k)) != cfgs[k]],
    "gone": sorted(set(names) - set(timm.list_models())) + sorted(set(pretrained) - set(timm.list_pretrained())),
    "foreign": [n for n in after if n not in before and not after[n][0].startswith("mixzoo.")],
    "added": len(after) - len(before),
    "models": len(mixzoo.list_models()),
}))
"""
    seen = json.loads(run_python(code))
    assert seen["added"] == seen["models"] > 0
    assert (seen["changed"], seen["cfgs"], seen["gone"], seen["foreign"]) == ([], [], [], [])


# how it is built


def imported(path: Path, tree: ast.AST) -> set[str]:
    """Floors of mixzoo that the module at ``path`` imports, wherever in it the import stands."""
    package = path.parent.parts
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("mixzoo.")}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            parts = [*base, *(node.module or "").split(".")]
            heads = [parts[0]] if parts[0] else [a.name for a in node.names]
            found |= set(heads)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mixzoo":
            rest = (node.module or "").split(".")[1:]
            found |= {rest[0]} if rest else {a.name for a in node.names}
    return found & set(FLOORS)


def floor(path: Path) -> int:
    return TOP if path.as_posix() in ABOVE_ALL else FLOORS[path.parts[0]]


def test_floors_use_only_the_floors_below() -> None:
    uses = {path: imported(path, ast.parse((ROOT / path).read_text())) for path in sources()}
    upward = {str(path): [n for n in names if FLOORS[n] > floor(path)] for path, names in uses.items()}
    assert sum(map(len, uses.values())) > len(uses)
    assert not {path: names for path, names in upward.items() if names}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("blocks/mixers/pool.py", "from ...zoo.spec import Variant"),
        ("kernels/attention.py", "def f():\n    from ..blocks import conv"),
        ("zoo/spec.py", "from .. import train"),
        ("zoo/spec.py", "import mixzoo.export.onnx"),
        ("zoo/spec.py", "from mixzoo import bench"),
    ],
)
def test_an_import_upwards_is_seen(path: str, code: str) -> None:
    assert any(FLOORS[name] > floor(Path(path)) for name in imported(Path(path), ast.parse(code)))


def test_files_stay_short() -> None:
    everything = [*sources(), *(p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*.py"))]
    lengths = {p.as_posix(): len((ROOT / p).read_text().splitlines()) for p in everything}
    assert not {p: n for p, n in lengths.items() if n > MAX_LINES}


def absolute_imports(tree: ast.AST) -> list[str]:
    modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
    modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return [m for m in modules if m.split(".")[0] == "mixzoo"]


def test_folders_import_one_another_relatively() -> None:
    found = {str(path): absolute_imports(ast.parse((ROOT / path).read_text())) for path in sources()}
    assert not {path: names for path, names in found.items() if names}
    assert absolute_imports(ast.parse("from mixzoo.zoo import spec\nimport mixzoo")) == ["mixzoo.zoo", "mixzoo"]
