#!/usr/bin/env bash
# Finetuning on the 8 GPUs of one machine: bash scripts/finetune.sh [flags and section.key=value of finetune.py]
# GPUS=4 takes fewer (the batch stays the same, see README.md); an interrupted run goes on.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec torchrun --standalone --nproc_per_node="${GPUS:-8}" finetune.py \
    --config configs/finetune_resnet50_bce.yaml --resume auto \
    --weights runs/pretrain_resnet50/checkpoints/last.pt "$@"
