#!/usr/bin/env bash
# nvidia-ml-py 12.570.86, 12.575.51, 13.580.65, 13.590.44: field value 251 is power smoothing, then time slowed for heat, twice, and
# then power smoothing again.
#
# Guess: the numbers of NVML's field values are part of its stable interface, as functions are: a number once given keeps its meaning.
# Seen: 575 put five counters of clock event reasons before the fields of power smoothing and moved those from 251 to 256; 580.65 has
# it so, too; 590 moved them back and gave the counters 269 to 271. nvmlDeviceGetFieldValues answers with success either way, so that
# a program asks for 251 and reads nanoseconds slowed for heat as "power smoothing is enabled", by the driver that it happens to meet.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
seen=""
for version in 12.570.86 12.575.51 13.580.65 13.590.44; do
    "$folder/venv/bin/python" -m pip install -q "nvidia-ml-py==$version"
    seen+=$("$folder/venv/bin/python" -W ignore - <<'PY'
import pynvml

named = (name for name, number in vars(pynvml).items() if name.startswith("NVML_FI_") and number == 251)
print(*named, end=" ")
PY
)
done
echo "$seen"
smoothing=NVML_FI_PWR_SMOOTHING_ENABLED heat=NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN
test "$(echo $seen)" = "$smoothing $heat $heat $smoothing"
