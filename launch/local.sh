#!/usr/bin/env bash
# One machine: ./launch/local.sh RECIPE [key=value ...]
# Ray stays on the loopback interface, without a dashboard. The same command again resumes the run.
set -euo pipefail

: "${1:?usage: launch/local.sh RECIPE [key=value ...]}"

export RAY_USAGE_STATS_ENABLED=0
export TOKENIZERS_PARALLELISM=false
export HF_HUB_ENABLE_HF_TRANSFER="${HF_HUB_ENABLE_HF_TRANSFER:-0}"

exec rlvr train "$@"
