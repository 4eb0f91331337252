#!/usr/bin/env bash
# The step of action.yml: its inputs arrive as variables, so that none is ever read as a command.
set -euo pipefail

python=${GUARD_PYTHON:-python}
if [ -n "${GUARD_INSTALL:-}" ]; then
    read -r -d "" -a wanted <<<"$GUARD_INSTALL" || true # of all lines; it ends without the delimiter, which is status 1
    "$python" -m pip install --quiet "${wanted[@]}"
fi

arguments=("$GUARD_CONFIG" --baseline "$GUARD_BASELINE" --format github)
[ -z "${GUARD_MODELS:-}" ] || arguments+=(--models "$GUARD_MODELS")
[ -z "${GUARD_DEVICE:-}" ] || arguments+=(--device "$GUARD_DEVICE")
[ -z "${GUARD_ALLOW:-}" ] || arguments+=(--allow "$GUARD_ALLOW")
[ -z "${GITHUB_STEP_SUMMARY:-}" ] || arguments+=(--summary "$GITHUB_STEP_SUMMARY")
exec "$python" -m bench guard "${arguments[@]}"
