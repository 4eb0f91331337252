from __future__ import annotations

from pathlib import Path

import pytest

from bench.config import Measure, check_config, load_config
from bench.errors import ConfigError
from bench.records import Choice
from bench.records.fields import key_fields

GRID = '[grid]\ndataset = "mnist"\nmodel = "mlp"\noptimizer = "sgd"\nbatch_size = 64\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    return [fault.removeprefix(f"{folder / 'c.toml'}: ") for fault in caught.value.faults]


def batch_sizes(folder: Path, value: str) -> tuple[int, ...]:
    return load_config(write(folder, f'name = "n"\n{GRID}'), [f"grid.batch_size={value}"]).grid.batch_size


def test_single_values_and_lists_are_axes_alike(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, f'name = "n"\n{GRID}precision = ["float32", "bf16"]\n'))
    assert config.grid.dataset == (Choice("mnist"),)
    assert config.grid.batch_size == (64,)
    assert config.grid.precision == ("float32", "bf16")
    assert config.grid.image_size is None


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        ("{ pow2 = [16, 128] }", (16, 32, 64, 128)),
        ("{ from = 32, to = 96, step = 32 }", (32, 64, 96)),
        ("{ from = 1, to = 10, step = 4 }", (1, 5, 9)),
        ("[8, { pow2 = [8, 16] }, 8]", (8, 16)),
    ],
)
def test_ranges_are_expanded_and_repeats_dropped(tmp_path: Path, value: str, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(tmp_path, value) == sizes


def test_settings_may_be_tables_or_text(tmp_path: Path) -> None:
    text = f'name = "n"\n{GRID}'.replace('"sgd"', '[{ name = "adam", foreach = false }, "adam:foreach=false", "adam"]')
    assert load_config(write(tmp_path, text)).grid.optimizer == (Choice.of("adam", {"foreach": False}), Choice("adam"))


def test_settings_that_equal_the_default_are_dropped(tmp_path: Path) -> None:
    text = f'name = "n"\n{GRID}'.replace('"mlp"', '["mlp", "mlp:hidden=128", "mlp:hidden=[256,128]"]')
    assert load_config(write(tmp_path, text)).grid.model == (Choice("mlp"), Choice.of("mlp", {"hidden": [256, 128]}))


def test_overrides_replace_values_and_make_sections(tmp_path: Path) -> None:
    path = write(tmp_path, f'name = "n"\n{GRID}')
    config = load_config(path, ["grid.batch_size=[8, 16]", "measure.min_window=2 s", "name=other"])
    assert (config.grid.batch_size, config.measure.min_window, config.name) == ((8, 16), 2.0, "other")


def test_the_protocol_carries_what_results_are_keyed_by(tmp_path: Path) -> None:
    path = write(tmp_path, f'name = "n"\n{GRID}')
    plain, moved, seeded = (
        load_config(path, [value]).protocol for value in ("name=n", "data.root=/x", "measure.seed=1")
    )
    assert plain.key == moved.key != seeded.key


def test_every_fault_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    text = """
        name = "bad name"
        colour = 3
        [grid]
        dataset = ["mnist", "cifra10"]
        model = ["resnte18", { name = "mlp", hiden = 3 }]
        optimizer = ["adam:lr=fast"]
        batch_size = [64, 0, true, { pow2 = [3, 9] }]
        precision = "bf61"
        [measure]
        repeats = 0
        warmup_steps = true
        measured_stepz = 3
        [limits]
        host_memory = "lots"
        [[exclude]]
        model = "x"
    """
    found = faults(tmp_path, text)
    assert found == [
        "name: must be 1 to 80 letters, digits, '.', '_' or '-', beginning with a letter, digit or '_'; given \"bad name\"",
        'grid.dataset[1]: unknown dataset "cifra10". Nearest: cifar10, cifar100. List them: bench list datasets',
        'grid.model[0]: unknown model "resnte18". Nearest: resnet18, resnet152, resnet101. List them: bench list models',
        'grid.model[1]: mlp has no setting "hiden". Nearest: hidden. Allowed: hidden; given { name = "mlp", hiden = 3 }',
        "grid.optimizer[0]: optimizer \"adam:lr=fast\": setting lr: 'fast' is not allowed: it must be a number "
        "(default 0.001)",
        "grid.batch_size[1]: must be a whole number from 1 to 16777216; given 0",
        "grid.batch_size[2]: must be a whole number from 1 to 16777216; given true",
        "grid.batch_size[3]: pow2 takes two powers of two, the smaller first: { pow2 = [16, 4096] }; given { pow2 = [3, 9] }",
        'grid.precision[0]: "bf61" is not allowed. Nearest: bf16, fp16. Allowed: float32, tf32, bf16, fp16',
        "exclude[0].reason: required, but missing",
        "measure.repeats: must be at least 1; given 0",
        "measure.warmup_steps: must be a whole number; given true",
        'measure.measured_stepz: unknown key "measured_stepz". Nearest: measured_steps, warmup_steps. Allowed: repeats, '
        "target_interval, max_repeats, time_budget, order, seed, warmup_steps, measured_steps, min_window, loader_workers, "
        "threads, cudnn_benchmark, deterministic, compiled, gradient_noise",
        'limits.host_memory: invalid memory size "lots": expected something like 512 MiB, 2 GiB or 4096',
        'colour: unknown key "colour". Allowed: name, description, grid, include, exclude, measure, limits, data, '
        "launcher",
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "batch_size = 64",
            "batch_size = nan",
            "grid.batch_size[0]: must be a whole number from 1 to 16777216; given nan",
        ),
        (
            "batch_size = 64",
            "batch_size = 64.0",
            "grid.batch_size[0]: must be a whole number from 1 to 16777216; given 64.0",
        ),
        ("batch_size = 64", "batch_size = []", "grid.batch_size: needs at least one value; given []"),
        ("batch_size = 64", "", "grid.batch_size: required, but missing"),
        ('model = "mlp"', 'model = ""', 'grid.model[0]: unknown model "". List them: bench list models'),
        (
            'model = "mlp"',
            "model = 3",
            'grid.model[0]: write a model as "name" or { name = "name", setting = value }; given 3',
        ),
    ],
)
def test_one_wrong_value_is_one_fault(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert faults(tmp_path, f'name = "n"\n{GRID}'.replace(old, new)) == [fault]


def test_duplicate_keys_are_refused_with_their_line(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, f'name = "n"\n{GRID}batch_size = 32\n')
    assert fault.startswith("not valid TOML: Cannot overwrite a value (at line 7")


def test_a_missing_file_names_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "gpu.toml").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(Path("configs/gpus.toml"))
    assert str(caught.value) == (
        "configs/gpus.toml: No such file or directory. Nearest: configs/gpu.toml. Available: configs/gpu.toml"
    )


@pytest.mark.parametrize("override", ["grid", "=3", "grid..x=3", "name.x=3"])
def test_malformed_overrides_say_how_to_write_them(tmp_path: Path, override: str) -> None:
    (fault,) = faults(tmp_path, f'name = "n"\n{GRID}', override)
    assert fault in (
        f"--set {override}: write section.key=value, like grid.batch_size=[64]",
        f"--set {override}: name is not a section",
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x = " + "[" * 3000, "not valid TOML: "),
        ("x = 1" + "0" * 5000, "not valid TOML: "),
        (
            'name = "n"\n' + GRID + "[limits]\nrun_timeout = 1e300",
            "limits.run_timeout: must be a duration above 0 and up to",
        ),
        (
            'name = "n"\n' + GRID + "[measure]\nmin_window = 1e308",
            "measure.min_window: must be a duration above 0 and up to",
        ),
        ('name = "n"\n' + GRID + f'[limits]\nhost_memory = "{"9" * 400}"', "limits.host_memory: "),
        (
            'name = "n"\n' + GRID + '[limits]\nhost_memory = "99999999999999999999 TiB"',
            "limits.host_memory: must be an amount",
        ),
        (
            'name = "n"\n' + GRID + "[limits]\ndevice_memory = 24",
            "limits.device_memory: must be an amount of memory from 1 MiB up to 1 EiB",
        ),
        (
            'name = "n"\n' + GRID.replace("64", "{ from = 1, to = 16777216, step = 1 }"),
            "grid.batch_size[0]: holds more than 10,000",
        ),
        (
            'name = "n"\n' + GRID + '[[exclude]]\nreason = "x"',
            "exclude[0]: no axis given; name at least one of dataset, model",
        ),
        (
            'name = "n"\n' + GRID + '[[exclude]]\nreason = "x"\nprecision = "bf61"',
            'exclude[0]: precision: "bf61" matches nothing',
        ),
    ],
)
def test_absurd_values_are_faults_like_any_other(tmp_path: Path, text: str, fault: str) -> None:
    (found,) = faults(tmp_path, text)
    assert found.startswith(fault), found


def test_a_fault_of_an_override_names_the_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, f'name = "n"\n{GRID}'), ["grid.batch_size=[0]", "measure.repeats=x"])
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == ["--set", "--set"]
    (fault,) = faults(tmp_path, f'name = "n"\n{GRID}', "grid.batch_size=[")
    assert fault.startswith("--set grid.batch_size=[: not valid TOML: ")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'name = "n"\n{GRID}', encoding="utf-8-sig")
    assert load_config(path).name == "n"


@pytest.mark.parametrize("name", ["default", "gpu", "memory_switches", "versions", "worked_table"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    folder = Path(__file__).parents[2] / "configs"
    assert load_config(folder / f"{name}.toml").name == name


def test_a_target_for_intervals_raises_the_least_and_the_most_runs() -> None:
    fixed, aimed = Measure(repeats=3), Measure(repeats=3, target_interval=0.02)
    assert (fixed.least_repeats, fixed.most_repeats, fixed.target_frac("cuda")) == (3, 3, None)
    assert (aimed.least_repeats, aimed.most_repeats, aimed.target_frac("cpu")) == (5, 20, 0.02)
    assert Measure(repeats=7, target_interval=0.02).least_repeats == 7
    automatic = Measure(target_interval="auto")
    assert (automatic.target_frac("cuda"), automatic.target_frac("cpu")) == (0.01, 0.05)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            'target_interval = "outo"',
            'measure.target_interval: "outo" is not a valid half-width of an interval. Nearest: auto. Write it '
            'as a fraction above 0 and up to 0.5 (0.01 for ±1 %), or "auto"',
        ),
        (
            "target_interval = 1",
            "measure.target_interval: 1 is not a valid half-width of an interval. Write it as a fraction above 0 and "
            'up to 0.5 (0.01 for ±1 %), or "auto"',
        ),
        (
            "target_interval = true",
            "measure.target_interval: true is not a valid half-width of an interval. Write it as a fraction above "
            '0 and up to 0.5 (0.01 for ±1 %), or "auto"',
        ),
        (
            "target_interval = 0.01\nmax_repeats = 4",
            "measure.max_repeats: 4 is below the minimum of 5 runs per case that target_interval needs",
        ),
        (
            "target_interval = 0.01\nrepeats = 25",
            "measure.max_repeats: 20 is below the minimum of 25 runs per case that target_interval needs",
        ),
        (
            'time_budget = "2 h"',
            'measure.time_budget: limits the repeats that target_interval adds: set target_interval too, or remove time_budget; given "2 h"',
        ),
        (
            'target_interval = 0.01\ntime_budget = "soon"',
            'measure.time_budget: invalid duration "soon": expected something like 90 s, 2 min or 250 ms',
        ),
        (
            "target_intervall = 0.01",
            'measure.target_intervall: unknown key "target_intervall". Nearest: target_interval. Allowed: '
            "repeats, target_interval, max_repeats, time_budget, order, seed, warmup_steps, measured_steps, min_window, "
            "loader_workers, threads, cudnn_benchmark, deterministic, compiled, gradient_noise",
        ),
    ],
)
def test_faults_of_stopping_are_reported_with_what_is_allowed(tmp_path: Path, line: str, fault: str) -> None:
    assert faults(tmp_path, f'name = "n"\n{GRID}\n[measure]\n{line}\n') == [fault]


def test_how_many_runs_there_are_is_no_part_of_what_one_does() -> None:
    grid = {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": 64}
    aimed = {"target_interval": 0.02, "max_repeats": 9, "time_budget": "1 h", "repeats": 6}
    keys = {check_config({"name": "n", "grid": grid, "measure": measure}, "t").protocol.key for measure in ({}, aimed)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("quick.toml", "quick"),
        ("my sweep.toml", "my_sweep"),
        (".hidden.toml", "_hidden"),
        ("n" * 90 + ".toml", "n" * 80),
    ],
)
def test_a_configuration_without_a_name_takes_its_files(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text(GRID)
    assert load_config(tmp_path / file).name == name
    assert load_config(tmp_path / file, ["name=other"]).name == "other"


@pytest.mark.parametrize("amount", ['"24 GiB"', '"24GB"', '"24gib"', str(24 << 30)])
def test_the_memory_of_a_smaller_card_is_part_of_the_protocol_and_of_its_key(tmp_path: Path, amount: str) -> None:
    text = f'name = "n"\n{GRID}'
    whole, card = (
        load_config(write(tmp_path, text + more)).protocol for more in ("", f"[limits]\ndevice_memory = {amount}")
    )
    assert (whole.device_memory_bytes, card.device_memory_bytes) == (None, 24 << 30)
    assert "device_memory_bytes" not in key_fields(whole)  # keys from before there was a limit stay as they are
    assert key_fields(card) == {**key_fields(whole), "device_memory_bytes": 24 << 30}
    assert whole.key != card.key


MINIMAL = {"name": "n", "grid": {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": 8}}


def test_the_section_of_the_launcher_is_read_and_kept_out_of_results() -> None:
    values = {
        "kind": "slurm",
        "device": " cuda:0 , cuda:2",
        "parallel": 2,
        "partition": "gpu",
        "account": "lab",
        "time": "4 h",
        "gres": "gpu:h100:1",
        "constraint": "a100|h100",
        "setup": ["module load cuda", "export TOKEN=secret"],
        "address": "ray://head:10001",
        "resources": {"h100": 1},
    }
    config = check_config({**MINIMAL, "launcher": values}, "c.toml")
    assert config.launcher.device == "cuda:0,cuda:2" and config.launcher.time == 14_400
    assert config.launcher.resources == {"h100": 1.0} and "secret" not in str(config.as_json())


def test_every_fault_of_the_launcher_is_told_at_once() -> None:
    values = {
        "kind": "slrum",
        "device": "cuda:x,tpu",
        "parallel": 0,
        "partition": "-p",
        "time": "soon",
        "setup": [3],
        "resources": {"h100": -1},
        "partitoin": "gpu",
    }
    with pytest.raises(ConfigError) as caught:
        check_config({**MINIMAL, "launcher": values}, "c.toml")
    said = "\n".join(caught.value.faults)
    kind = "launcher.kind: must be 'local', 'slurm' or 'ray'; given \"slrum\". Nearest: slurm"
    for words in (kind, '"cuda:x", "tpu"', "1 to 1024", '"-p"', "soon", "setup", "h100 = -1", "Nearest: partition"):
        assert words in said, words
    assert len(caught.value.faults) == 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"GPU": 2}, "GPU: a run has one GPU"),
        ({"memory": 1, "h100": 1}, "memory: a run has one GPU, and no request for memory"),
        ({"h100": 1.5}, "h100 = 1.5: an amount above 1 is a whole number"),
    ],
)
def test_resources_that_ray_would_refuse_later_are_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config({**MINIMAL, "launcher": {"kind": "ray", "resources": given}}, "c.toml")
    check_config({**MINIMAL, "launcher": {"kind": "ray", "resources": {"accelerator_type:H100": 0.001}}}, "c.toml")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("all,cuda:0", "all stands alone"),
        ("cuda:0,cuda:0", "named twice"),
        ("cuda:0,cpu:1", "both GPUs and slots"),
        ("", "unknown"),
        (3, "unknown 3"),
    ],
)
def test_requests_for_devices_that_mean_nothing_are_refused(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config({**MINIMAL, "launcher": {"device": given}}, "c.toml")


def test_settings_of_a_cluster_need_a_kind() -> None:
    with pytest.raises(ConfigError, match=r'partition, address: read only with kind = "slurm" or "ray"'):
        check_config({**MINIMAL, "launcher": {"partition": "gpu", "address": "auto"}}, "c.toml")
    local = check_config({**MINIMAL, "launcher": {"kind": "local", "partition": "gpu"}}, "c.toml")
    assert local.launcher.partition == "gpu"
