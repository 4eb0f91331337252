"""What is read from the machine: clocks, memory, NVML, the environment. Nothing here imports torch before it is called.

Rooms: `nvml_session` (bounded NVML calls), `nvml` (which GPUs there are), `gpu_monitor` (readings of one GPU),
`throttling` (what the readings say of a run), `host` and `environment` (what a row records of its machine),
`backends` (kinds of devices, one file a vendor), `torch_facts`, `machine_facts` and `diagnosis` (problems of a machine
and how to fix them), `step_timing`,
`torch_memory`, `cpu_memory`, `host_memory` and `oom` (what a step costs).
"""
