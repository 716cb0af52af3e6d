"""SkyPilot's plugin files, the wheel and a run's terms. The disasters: a person's own plugins gone; a deadline that is said to be
kept and is not; a controller that cannot import what it was sent."""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
import yaml

from launcher.backends.sky import enforcement, plugin_wheel
from launcher.backends.sky.deadline.names import KEY, PLUGIN, STRATEGY, VERSION
from launcher.backends.sky.enforcement import LOCAL_CLASS, REMOTE_CLASS, deadline_is_enforced, set_up, with_plugin
from launcher.backends.sky.task import Place, build_task, places_of
from launcher.backends.sky.terms import PREEMPTIBLE, TICK, progress_at, terms_of, work_s
from launcher.plan.make import START_S
from launcher.runs.errors import BackendError, BadUsage
from tests.unit.test_sky_task import job_of, train_of

OWN = """\
# mine
controller_wheel_path: /srv/wheels   # ours
plugins:
- class: company.audit.Plugin
  parameters: {level: 3}   # keep

# the end
"""
PRICES = [
    ["aws/us-east-1/us-east-1a", True, 9.0],
    ["aws/us-west-2/us-west-2b", True, 9.5],
    ["aws/us-east-1", False, 30.0],
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "dolphin"))
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)

    def nobody_listens(url: str) -> bytes:
        raise ConnectionRefusedError(url)

    monkeypatch.setattr(enforcement, "_asked", nobody_listens)
    return tmp_path


@pytest.mark.parametrize(
    "text", ["", "{}\n", "plugins: []\n", OWN, "plugins:\n  - class: a.B\n", "controller_wheel_path: /srv/wheels"]
)
def test_an_entry_is_added_and_nothing_else_of_a_plugins_file_is_touched(text: str) -> None:
    added = with_plugin(text, "x.Y", {"controller_wheel_path": "/ours"})
    before = yaml.safe_load(text) or {}
    assert added is not None
    assert yaml.safe_load(added) == {
        "controller_wheel_path": "/ours", **before, "plugins": [*before.get("plugins", []), {"class": "x.Y"}]
    }  # fmt: skip
    assert [line for line in text.splitlines() if line not in added and "{}" not in line and "[]" not in line] == []
    assert with_plugin(added, "x.Y", {"controller_wheel_path": "/ours"}) == added


def test_a_file_that_nobody_can_read_is_left_alone(home: Path) -> None:
    path = home / ".sky" / "plugins.yaml"
    path.parent.mkdir()
    path.write_text("plugins: [")
    with pytest.raises(BackendError, match=rf"plugins\.yaml: cannot be added to .* add `- class: {LOCAL_CLASS}`"):
        set_up()
    assert path.read_text() == "plugins: ["


def test_what_is_set_up_is_found_again_and_a_server_that_runs_has_yet_to_load_it(home: Path) -> None:
    assert "doctor --fix" in str(deadline_is_enforced())
    assert [line.partition(" ")[0] for line in set_up()] == ["wrote"] * 3
    assert deadline_is_enforced() is None  # the server will read it when it starts
    assert LOCAL_CLASS in (home / ".sky/plugins.yaml").read_text()
    assert REMOTE_CLASS in (home / ".sky/remote_plugins.yaml").read_text()
    assert len(set_up()) == 1  # the wheel alone is written anew
    next((home / "dolphin" / "sky-plugin").glob("*.whl")).unlink()
    assert "a VM of its own" in str(deadline_is_enforced())


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An API server that tells `plugins`, or refuses."""
    told = SimpleNamespace(plugins=[], refuses=False)

    def asked(url: str) -> bytes:
        if told.refuses:
            raise HTTPError(url, 401, "Unauthorized", Message(), None)
        return json.dumps({"plugins": told.plugins}).encode()

    monkeypatch.setattr(enforcement, "_asked", asked)
    return told


def test_a_server_is_believed_about_its_own_plugins_and_no_file_is(server: SimpleNamespace) -> None:
    set_up()
    assert "sky api stop" in str(deadline_is_enforced())
    server.plugins = [{"name": PLUGIN, "version": "0"}]
    assert "sky api stop" in str(deadline_is_enforced())  # of another dolphin
    server.plugins = [{"name": PLUGIN, "version": VERSION}]
    assert deadline_is_enforced() is None
    (Path.home() / ".sky/plugins.yaml").rename(Path.home() / "away")
    assert "doctor --fix" in str(deadline_is_enforced())  # what the server starts next would lack it
    (Path.home() / "away").rename(Path.home() / ".sky/plugins.yaml")
    server.refuses = True
    assert "does not say" in str(deadline_is_enforced())


def test_the_wheel_holds_what_it_imports_and_runs_in_skypilots_python(tmp_path: Path) -> None:
    wheel = plugin_wheel.write(tmp_path)
    assert plugin_wheel.write(tmp_path) == wheel
    with zipfile.ZipFile(wheel) as packed:
        texts = {name: packed.read(name).decode() for name in packed.namelist() if name.endswith(".py")}
    modules = {name[:-3].replace("/", ".").removesuffix(".__init__") for name in texts}
    for name, text in texts.items():
        tree = ast.parse(text, feature_version=(3, 10))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                top = node.module.split(".")[0]
                assert node.module in modules or top == "sky" or top in sys.stdlib_module_names, (
                    f"{name}: {node.module}"
                )
        assert "launcher.backends" not in text.replace("`launcher.backends", ""), name
    assert REMOTE_CLASS.rpartition(".")[0] in modules


def test_a_wheel_of_other_sources_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller installs a wheel once for each file name."""
    before = plugin_wheel.write(tmp_path)
    monkeypatch.setattr(plugin_wheel, "_renamed", lambda text: text + "#\n")
    after = plugin_wheel.write(tmp_path)
    assert after.name != before.name
    assert [path.name for path in tmp_path.iterdir()] == [after.name]


def test_a_job_without_deadline_and_budget_has_no_terms_and_skypilots_own_strategy(tmp_path: Path) -> None:
    job = job_of(infra=["aws"])
    train, places = train_of(job), places_of(job, ["aws"])
    assert terms_of(job, train, places, PRICES, {}) is None
    [task] = [build_task(job, train, places, SimpleNamespace(file_mounts=lambda _: {}), tmp_path)]  # type: ignore[arg-type]
    assert {"strategy", KEY}.isdisjoint(task["resources"]["ordered"][0]["job_recovery"])


def test_the_terms_of_a_job_are_what_its_strategy_reads(tmp_path: Path) -> None:
    job = job_of(infra=["aws"]).model_copy(
        update={"deadline": "2026-12-01T18:00:00Z", "budget": 450.0, "env": {TICK: "30"}}
    )
    train, places = train_of(job), places_of(job, ["aws"])
    plan = {"rows": [{"is_possible": True, "hours": {"mean": 20.0, "p10": 19.0}, "offer": {"spot": False}}]}
    terms = terms_of(job, train, places, PRICES, plan)
    assert terms is not None
    assert (terms["deadline"], terms["budget"], terms["work_s"], terms["tick_s"]) == (
        1796148000.0,
        450.0,
        71_400.0,
        30.0,
    )
    assert terms["progress"] == f"{train.store}/run/progress.json"
    assert terms["prices"] == PRICES
    json.dumps(terms)
    shipment = SimpleNamespace(file_mounts=lambda _: {})
    task = build_task(job, train, places, shipment, tmp_path, terms=terms)  # type: ignore[arg-type]
    for entry in task["resources"]["ordered"]:
        assert entry["job_recovery"]["strategy"] == STRATEGY
        assert entry["job_recovery"][KEY] == terms


def test_progress_of_a_slurm_cluster_is_read_over_its_login_node() -> None:
    job = job_of(infra=["slurm/lab"]).model_copy(update={"deadline": "2026-12-01T18:00:00Z"})
    job = job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"store": "/shared/runs"})})
    train = train_of(job)
    assert progress_at(job, train, [Place("slurm/lab/spot"), Place("slurm/lab/steady")]).startswith("slurm:lab:/")


def test_seconds_that_are_none_are_refused() -> None:
    job = job_of().model_copy(update={"budget": 1.0, "env": {TICK: "soon", PREEMPTIBLE: "a, b"}})
    with pytest.raises(BadUsage, match=r"env\.DOLPHIN_TICK_S: soon"):
        terms_of(job, train_of(job), [], [], {})


def test_work_is_that_of_a_machine_that_nobody_takes_away() -> None:
    row = {"is_possible": True, "hours": {"mean": 30.0, "p10": 20.0}, "offer": {"spot": True}}
    steady = {"is_possible": True, "hours": {"mean": 25.0, "p10": 25.0}, "offer": {"spot": False}}
    assert work_s({"rows": [row, steady]}) == 25 * 3600 - START_S
    assert work_s({"rows": [row]}) == 20 * 3600 - START_S
    assert work_s({"rows": [{**row, "is_possible": False}]}) is None
    assert work_s({}) is None


def test_classes_named_for_skypilot_are_where_they_are_said_to_be() -> None:
    for name, folder in ((LOCAL_CLASS, ""), (REMOTE_CLASS, "launcher.backends.sky.deadline")):
        module, _, cls = name.rpartition(".")
        module = module.replace(plugin_wheel.PACKAGE, folder)
        path = Path(enforcement.__file__).parents[3] / (module.replace(".", "/") + ".py")
        assert f"class {cls}(" in path.read_text()
