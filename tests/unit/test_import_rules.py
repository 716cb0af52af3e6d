"""Who may import whom, read from the source, so that a lazy import counts too.

The disasters: a laptop that must install torch to read a log; a trainer image that drags the launcher along; SkyPilot
loaded (seconds) by a command that needs no cloud.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rooms import floors_of, imports, imports_when_run, modules_of, nodes_of, rooms_of, tree_of

ROOT = Path(__file__).parents[2]
FLOORS = {
    "launcher": "config models runs streams units < jobfile < backends < follow plan < commands < cli < __main__",
    "launcher.backends": "base checks confinement inputs release < home < docker sky",
    "launcher.backends.docker": "container endpoint < engine < image trial < backend doctor",
    "launcher.backends.sky": "answers bucket_copy catalog deadline errors node phases plugin_wheel server status < jobs log task < controller offers ship store_access terms < adopting enforcement reach uploads < doctor elsewhere records < reading stopping < backend < client",
    "launcher.commands": "adopt convert data doctor down explain finished_model offers plan report samples schema spectrum trainer_side validate < evaluate export launch merge push reference runs sample talk watch < init sweep",
    "launcher.cli": "arguments finished < jobs machine models runs < app < main < __main__",
    "launcher.follow": "history run_view standing < readers screen < follow patience status < attend report watch",
    "launcher.jobfile": "limits < axolotl field_docs model_checks paths pattern_checks regions source_checks spec < evaluate_checks name_checks < load settle",
    "launcher.plan": "costs data_facts gpu_memory gpus model_rules preemption spot_notice unfrozen < counting host_memory throughput < evaluation_time history zero_stage < adapter_choices launch_plan < limits notes outlook < make seen < of_job view",
    "launcher.follow.report": "facts plots < curves tables < page < server",
    "trainer": "run < data supervise < model < engine < checkpoint export < finished rank sample",
    "trainer.run": "bounded chat_templates data_report exits local_files log_lines optimizer_state python recomputation redaction trainable work < adapter_files patterns run_folder secret_file settings stores weights_index < limits < attention_kernel paid prompts spec weight_names < measures result < evaluation_problems < contradictions evaluation_interval formats packages save_interval",
    "trainer.run.settings": "base < adapter card checkpoint data evaluate export model push track < train",
    "trainer.supervise": "disk heartbeat log parent_death rendezvous signals spot_notices stop_flag < agent outcome rank_guard torchrun < hooks limits verdict < attempt < supervisor < __main__",
    "launcher.runs.policy": "sightings situation < simulate worth < decide < live",
    "launcher.backends.sky.deadline": "names progress < strategy < plugin",
}
"""The import rules, a line a package: rooms that may know nothing of each other, and behind each `<` those that stand on them."""
NODE_STACK = ("torch", "transformers", "deepspeed", "datasets", "safetensors", "numpy", "tokenizers")
ONLY_IMPORTERS = {
    "sky": ("launcher/backends/sky/client.py", "launcher/backends/sky/deadline/"),
    "docker": ("launcher/backends/docker",),
}
"""Prefixes of the only files that may import a backend's library. `deadline` runs within SkyPilot."""


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no source under {package}: the rule would hold for nothing"
    return found


def offenders(package: str, is_forbidden) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(package)
        for name, line in imports(path)
        if is_forbidden(name, str(path.relative_to(ROOT)))
    ]


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_launcher_never_needs_the_training_stack() -> None:
    assert offenders("launcher", lambda name, _: any(is_within(name, package) for package in NODE_STACK)) == []


def test_launcher_reaches_no_trainer_module_that_needs_the_training_stack() -> None:
    """A module of the trainer is fit for the laptop where neither it nor anything it imports at its top needs torch."""
    assert offenders("launcher", lambda name, _: is_within(name, "trainer") and needs_node_stack(name)) == []


def needs_node_stack(name: str, seen: frozenset[str] = frozenset()) -> bool:
    path = ROOT / (name.replace(".", "/") + ".py")
    if name in seen or not path.exists():
        return False
    for top, _ in top_level_imports(path):
        if any(is_within(top, package) for package in NODE_STACK) or needs_node_stack(top, seen | {name}):
            return True
    return False


def top_level_imports(path: Path) -> Iterator[tuple[str, int]]:
    """What importing `path` loads: its imports outside functions and outside `if TYPE_CHECKING`."""
    pending: list[ast.stmt] = list(tree_of(path).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    pending.append(child)


def test_trainer_never_needs_the_launcher() -> None:
    forbidden = ("launcher", "typer", "rich", "sky", "docker")
    assert offenders("trainer", lambda name, _: any(is_within(name, package) for package in forbidden)) == []


@pytest.mark.parametrize("library", sorted(ONLY_IMPORTERS))
def test_only_its_backend_loads_a_backends_library(library: str) -> None:
    homes = ONLY_IMPORTERS[library]
    assert offenders("launcher", lambda name, path: is_within(name, library) and not path.startswith(homes)) == []


def test_command_line_loads_only_typer_at_its_top() -> None:
    standard = sys.stdlib_module_names
    loaded = {name for path in sources("launcher/cli") for name, _ in top_level_imports(path)}
    assert {name.split(".")[0] for name in loaded} - standard - {"__future__"} == {"typer", "launcher"}
    assert all(is_within(name, "launcher.cli") for name in loaded if is_within(name, "launcher"))


def test_the_reader_of_imports_sees_lazy_and_nested_ones(tmp_path: Path) -> None:
    """The rules above would hold for anything if this failed."""
    path = tmp_path / "module.py"
    path.write_text("import a.b\ndef f():\n    from c.d import e\n    if f:\n        import g\n")
    assert {name for name, _ in imports(path)} == {"a.b", "c.d", "c.d.e", "g"}
    assert {name for name, _ in top_level_imports(path)} == {"a.b"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """In a circle nothing can be read, tested or moved alone. An import within a function counts, one for types does not."""
    modules = modules_of("launcher") | modules_of("trainer")
    graph = {
        module: {name for name, _ in imports_when_run(path) if name in modules and name != module}
        for module, path in modules.items()
    }
    assert sum(map(len, graph.values())) > 200, "the graph has lost its edges"
    floors_of(graph)


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_no_import_climbs(package: str) -> None:
    """Each room imports from the floors below its own alone. A new room finds its floor in FLOORS, or belongs into another."""
    stated = [floor.split() for floor in FLOORS[package].split("<")]
    floor_of = {room: number for number, floor in enumerate(stated) for room in floor}
    graph = rooms_of(package)
    assert set(graph) == set(floor_of), "rooms that FLOORS does not know, or that are no more"
    assert [
        f"{package}.{room} imports {other}"
        for room, others in graph.items()
        for other in others
        if floor_of[other] >= floor_of[room]
    ] == []


@pytest.mark.parametrize("package", ["launcher", "trainer"])
def test_a_package_has_few_rooms_on_few_floors(package: str) -> None:
    """What one reader keeps in mind."""
    graph = rooms_of(package)
    graph.pop("__main__", None)  # what `python -m` opens: the door of another room
    assert len(graph) <= 11
    assert len(floors_of(graph)) <= 6


def test_launcher_knows_of_the_trainer_only_the_contract() -> None:
    """What both sides read is in trainer.run; the rest is started as a process, wherever it is installed."""
    outside = offenders(
        "launcher",
        lambda name, _: is_within(name, "trainer") and name != "trainer" and not is_within(name, "trainer.run"),
    )
    assert outside == []


def test_what_ships_alone_to_a_node_needs_nothing_that_a_node_may_lack() -> None:
    """The relay and what it loads run in whatever Python a node has; the bucket's script runs in the trainer's."""
    node = ROOT / "launcher" / "backends" / "sky" / "node"
    allowed = {"relay": (), "instance": (), "branch": (), "deadline": (), "bucket": ("trainer.run",)}
    assert {path.stem for path in node.glob("*.py")} - {"__init__"} == set(allowed)
    for module, packages in allowed.items():
        for name, line in imports(node / f"{module}.py"):
            known = name.split(".")[0] in sys.stdlib_module_names or any(
                is_within(name, package) for package in packages
            )
            assert known, f"{module}.py:{line} imports {name}"


STARTS_OF_PYTHON = {
    "trainer/run/python.py": "the one way",
    "trainer/supervise/parent_death.py": "isolated: it imports nothing from any folder",
    "trainer/supervise/attempt.py": "puts the folder of its tools on the PATH",
    "launcher/backends/home/local.py": "puts the folder of its tools on the PATH",
    "launcher/commands/doctor.py": "names it",
    "launcher/backends/sky/node/relay.py": "ships alone, and sets PYTHONSAFEPATH",
    "launcher/backends/docker/container.py": "the image's Python, with PYTHONSAFEPATH",
}


def test_python_is_started_in_one_way_alone() -> None:
    """A plain `python -m` imports from the working folder, where a downloaded data set may have a numpy.py."""
    found = {
        str(path.relative_to(ROOT))
        for package in ("launcher", "trainer")
        for path in sources(package)
        for node in nodes_of(path)
        if (isinstance(node, ast.Attribute) and node.attr == "executable")
        or (isinstance(node, ast.Constant) and node.value in ("-m", "-c", "python3"))
    }
    assert found == set(STARTS_OF_PYTHON)
    for name in ("trainer/supervise/attempt.py", "launcher/backends/home/local.py"):
        text = (ROOT / name).read_text()
        assert text.count("sys.executable") == text.count("Path(sys.executable).parent") == 1


STARTS_OF_THREADS = {
    "trainer/engine/threads.py": "sets the GPU first",
    "trainer/run/stores/ranges.py": "fetches parts of a file; the run contract knows no torch",
    "trainer/supervise/hooks.py": "posts to hooks; the supervisor knows no torch",
    "trainer/supervise/log.py": "copies lines; the supervisor knows no torch",
    "trainer/supervise/supervisor.py": "waits for a spot notice; the supervisor knows no torch",
}


def test_a_thread_of_a_rank_is_started_in_one_way_alone() -> None:
    """A new thread is on GPU 0, whatever GPU its rank has."""
    names = ("Thread", "Timer", "ThreadPoolExecutor", "ThreadPool", "start_new_thread", "to_thread", "run_in_executor")
    found = {
        str(path.relative_to(ROOT))
        for path in sources("trainer")
        for node in nodes_of(path)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) in names or getattr(node.func, "id", None) in names)
    }
    assert found == set(STARTS_OF_THREADS)


def test_a_support_module_has_one_name() -> None:
    """Imported as `dolphin_cli` here and as `tests.support.dolphin_cli` there, it is in memory twice: what one sets the other
    does not see. Its full name is the one that a process of its own can be started with, too."""
    tests = ROOT / "tests"
    assert [entry for entry in sys.path if Path(entry).resolve().is_relative_to(tests)] == []
    support = [path for path in (tests / "support").glob("*.py") if path.name != "__init__.py"]
    for path in support:
        found = importlib.util.find_spec(f"tests.support.{path.stem}")
        assert found is not None
        assert found.origin == str(path)
    short = "|".join([*(path.stem for path in support), "support"])
    by_short_name = re.compile(rf"^ *(?:from (?:{short})\b[\w.]* import |import (?:{short})\b)", re.MULTILINE)
    assert by_short_name.search("import sys\n    from support.rooms import rooms_of\n")
    assert [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in sources("tests")
        for found in by_short_name.finditer(path.read_text())
    ] == []
