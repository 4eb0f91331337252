"""The harness under faults: kills, refusals of the operating system, damage, crowds; see docs/reliability.md.

`python -m tests.chaos CAMPAIGN --seed S --count N` runs one campaign and prints what it did as a line of JSON;
`nox -s chaos -- --minutes 10 --seed 1` runs them all. The ordinary tests run the same campaigns with small counts.
"""
