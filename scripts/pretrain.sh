#!/usr/bin/env bash
# Pretraining on the 8 GPUs of one machine: bash scripts/pretrain.sh [flags and section.key=value of pretrain.py]
# GPUS=4 takes fewer (the batch stays the same, see README.md); an interrupted run goes on.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec torchrun --standalone --nproc_per_node="${GPUS:-8}" pretrain.py \
    --config configs/pretrain_resnet50.yaml --resume auto "$@"
