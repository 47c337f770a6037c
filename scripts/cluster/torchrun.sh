#!/usr/bin/env bash
# One node, or several that you start by hand. On every node:
#   NODES=2 NODE=0 FIRST=node0 scripts/cluster/torchrun.sh vera_lite/configs/vera_14b.yaml [more options of `fit`]
# NODES: how many (1). NODE: which one this is (0). FIRST: name of the first (localhost). GPUS: of each (all).
set -euo pipefail
config=${1:?give a configuration}
shift
run=$(sed -n 's/^  default_root_dir: //p' "$config")
resume=()
[ -e "$run/last.ckpt" ] && resume=(--ckpt_path "$run/last.ckpt")
exec torchrun --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-gpu}" \
    --rdzv-backend c10d --rdzv-endpoint "${FIRST:-localhost}:29500" --rdzv-id vera-lite \
    -m vera_lite.cli fit --config "$config" --trainer.num_nodes "${NODES:-1}" "${resume[@]}" "$@"
