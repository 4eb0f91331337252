"""Configurations with one thing wrong: by name, the text of the file."""

from __future__ import annotations

_GRID = {"dataset": '"mnist"', "model": '"mlp"', "optimizer": '"sgd"', "batch_size": "64"}


def _config(grid: dict[str, str | None] | None = None, rest: str = "", head: str = 'name = "n"\n') -> str:
    lines = {**_GRID, **(grid or {})}
    return head + "[grid]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None) + rest


def _axis(axis: str, **values: str | None) -> dict[str, str]:
    return {f"{axis} {name.replace('_', ' ')}": _config({axis: value}) for name, value in values.items()}


def _section(section: str, **lines: str) -> dict[str, str]:
    return {
        f"{section} {name.replace('_', ' ')}": _config(rest=f"[{section}]\n{line}\n") for name, line in lines.items()
    }


def _table(section: str, **lines: str) -> dict[str, str]:
    return {
        f"{section} {name.replace('_', ' ')}": _config(rest=f"[[{section}]]\n{line}\n") for name, line in lines.items()
    }


CONFIGURATIONS: dict[str, str | bytes] = {
    "empty file": "",
    "only a comment": "# nothing\n",
    "no grid": 'name = "n"\n',
    "grid is a number": 'name = "n"\ngrid = 3\n',
    "grid is a list": 'name = "n"\n[[grid]]\nmodel = "mlp"\n',
    "not TOML": "name: n\ngrid:\n  model: mlp\n",
    "JSON": '{"name": "n"}',
    "a key twice": _config(rest="batch_size = 32\n"),
    "an open quote": 'name = "n\n',
    "an open bracket": _config({"batch_size": "[16, 32"}),
    "a missing comma": _config({"batch_size": "[16 32]"}),
    "a word without quotes": _config({"model": "mlp"}),
    "no UTF-8": b'name = "\xff"\n',
    "UTF-16": 'name = "n"\n'.encode("utf-16"),
    "a zero byte": b'name = "n\x00"\n',
    "a Parquet file": b"PAR1" + bytes(40) + b"PAR1",
    "a number of 5,000 digits": _config({"batch_size": "9" * 5000}),
    "a nest of 5,000 brackets": _config({"batch_size": "[" * 5000}),
    "larger than 1 MiB": "#" * ((1 << 20) + 1),
    "unknown section": _config(rest="[meassure]\nrepeats = 3\n"),
    "unknown key at the top": _config(head='name = "n"\nrepeats = 3\n'),
    "a key in another section": _config({"repeats": "3"}),
    "a key with a space": _config(head='name = "n"\n"my key" = 1\n'),
    "a key with a colour in it": _config(head='name = "n"\n"\\u001b[31mred" = 1\n'),
    "name is a number": _config(head="name = 3\n"),
    "name is empty": _config(head='name = ""\n'),
    "name is a path": _config(head='name = "../elsewhere"\n'),
    "name has a space": _config(head='name = "my sweep"\n'),
    "name begins with a dot": _config(head='name = ".hidden"\n'),
    "name is too long": _config(head=f'name = "{"n" * 81}"\n'),
    "description is a number": _config(head='name = "n"\ndescription = 3\n'),
    **_axis(
        "dataset",
        missing=None,
        misspelt='"cifra10"',
        empty='""',
        is_a_number="3",
        empty_list="[]",
        nested='[["mnist"]]',
        folder_missing='"folder:/nowhere/at/all"',
        folder_without_a_path='"folder"',
        unknown_setting='"mnist:fast=true"',
    ),
    **_axis(
        "model",
        missing=None,
        misspelt='"resnte18"',
        in_capitals='"ResNet18"',
        one_of_two='["mlp", "mpl"]',
        is_true="true",
        table_without_name="{ hidden = [64] }",
        table_with_number="{ name = 3 }",
        misspelt_setting='{ name = "mlp", hiden = [64] }',
        setting_of_wrong_type='"mlp:hidden=large"',
        setting_without_value='"mlp:hidden"',
        setting_on_one_without='"resnet18:depth=3"',
        negative_width='{ name = "mlp", hidden = [-1] }',
    ),
    **_axis(
        "optimizer",
        missing=None,
        misspelt='"adma"',
        rate_is_a_word='"adam:lr=fast"',
        unknown_setting='"sgd:learning_rate=0.1"',
        is_a_list_of_numbers="[1, 2]",
    ),
    **_axis(
        "batch_size",
        missing=None,
        zero="0",
        negative="-16",
        a_fraction="16.5",
        a_whole_float="64.0",
        a_word='"64"',
        true="true",
        not_a_number="nan",
        too_large="33554432",
        empty_list="[]",
        pow2_of_no_power="{ pow2 = [3, 9] }",
        pow2_backwards="{ pow2 = [64, 16] }",
        pow2_with_one="{ pow2 = [16] }",
        pow2_beside_another="{ pow2 = [16, 32], step = 2 }",
        range_without_step="{ from = 16, to = 64 }",
        range_backwards="{ from = 64, to = 16, step = 16 }",
        range_with_step_zero="{ from = 16, to = 64, step = 0 }",
        range_too_long="{ from = 1, to = 16777216, step = 1 }",
        a_date="2026-11-22",
    ),
    **_axis("precision", misspelt='"bf61"', of_numpy='"float16"', is_a_number="16", empty="[]"),
    **_axis("memory_format", misspelt='"channel_last"', is_true="true"),
    **_axis("input", misspelt='"cache"', empty_word='""'),
    **_axis("image_size", zero="0", too_large="100000", a_word='"224x224"'),
    **_section(
        "measure",
        repeats_zero="repeats = 0",
        repeats_a_word='repeats = "three"',
        repeats_a_fraction="repeats = 2.5",
        repeats_too_many="repeats = 5000",
        repeats_true="repeats = true",
        misspelt="repeat = 3",
        order_misspelt='order = "interleave"',
        seed_negative="seed = -1",
        seed_too_large="seed = 2147483648",
        warmup_zero="warmup_steps = 0",
        steps_too_many="measured_steps = 1000000",
        window_a_number_of_words='min_window = "a while"',
        window_negative="min_window = -1",
        window_endless="min_window = inf",
        window_unit_unknown='min_window = "3 fortnights"',
        workers_negative="loader_workers = -1",
        threads_zero="threads = 0",
        compiled_a_word='compiled = "yes"',
        cudnn_a_number="cudnn_benchmark = 1",
        target_too_wide="target_interval = 0.9",
        target_zero="target_interval = 0",
        target_misspelt='target_interval = "atuo"',
        target_in_percent='target_interval = "1%"',
        max_below_the_least="target_interval = 0.01\nmax_repeats = 3",
        budget_without_target='time_budget = "10 min"',
    ),
    **_section(
        "launcher",
        unknown_kind='kind = "slrum"',
        unknown_device='device = "cuda:0,gpu1"',
        device_twice='device = "cuda:0,cuda:0"',
        no_runs_at_once="parallel = 0",
        partition_that_is_an_option='partition = "--all"',
        partition_without_a_kind='partition = "gpu"',
        resources_below_zero='kind = "ray"\nresources = { h100 = -1 }',
        unknown_key='partitoin = "gpu"',
    ),
    **_section(
        "limits",
        timeout_zero="run_timeout = 0",
        timeout_a_month='run_timeout = "31 days"',
        memory_a_word='host_memory = "lots"',
        memory_negative="host_memory = -1",
        memory_unit_unknown='host_memory = "8 GBit"',
        device_memory_zero='device_memory = "0 GiB"',
        failures_zero="infrastructure_failures = 0",
        unknown_key="max_gpus = 1",
    ),
    **_section("data", root_a_number="root = 3", fetch_a_word='fetch = "no"', unknown_key='path = "/data"'),
    **_table(
        "include",
        without_reason='model = "resnet18"',
        empty_reason='reason = ""\nmodel = "resnet18"',
        unknown_model='reason = "r"\nmodel = "resnte18"',
        unknown_key='reason = "r"\nmodels = "mlp"',
    ),
    **_table(
        "exclude",
        without_reason='model = "mlp"',
        without_an_axis='reason = "r"',
        precision_matches_nothing='reason = "r"\nprecision = "bf61"',
        device_matches_nothing='reason = "r"\ndevice = "tpu"',
        an_empty_pattern='reason = "r"\nmodel = ""',
        a_number_as_pattern='reason = "r"\nmodel = 3',
    ),
    "include is a section": _config(rest='[include]\nreason = "r"\nmodel = "resnet18"\n'),
    "three faults at once": _config({"model": '"resnte18"', "batch_size": "0"}, rest="[measure]\nrepeats = 0\n"),
}
