#!/usr/bin/env bash
# One machine:  launch/local.sh RECIPE [key=value ...]
# Ray listens on the loopback interface alone, without a dashboard. The same command again resumes the run.
set -euo pipefail
: "${1:?usage: launch/local.sh RECIPE [key=value ...]}"

export PATH="$PWD/.venv/bin:$PATH"
export RAY_USAGE_STATS_ENABLED=0

exec rlvr train "$@"
