#!/bin/sh
# A whole campaign: sh results/campaign.sh PRESET SOURCE RUN SIDE
#   sh results/campaign.sh fashion-mnist idx:FOLDER runs/fashion-mnist 7
#   sh results/campaign.sh cifar10-small parquet:FOLDER runs/cifar10-small 8
# SIDE is the height and width of the maps. TRAIN and PROBE hold further options of `train` and `classify`, such as those
# for a GPU: TRAIN="--train.batch-size 128 --train.precision bfloat16" PROBE="--probe.precision bfloat16".
# Stopped at any time and started again, it goes on where it was: what is finished is kept and looked at again only to be
# verified. In the background: nice -n 10 sh results/campaign.sh … &
set -eu
preset=$1 source=$2 run=$3 side=$4
features="tokens values reconstruction tdsm additive attention leave_one_out additive+attention additive+reconstruction"
rows="majority pixels-ridge pixels-mlp pixels-resnet reconstruction-resnet additive-resnet additive+attention-resnet"
for feature in $features; do rows="$rows $feature-ridge $feature-mlp $feature-mlp_dropout"; done

# shellcheck disable=SC2086 # words are arguments
tdsm train --preset "$preset" --data.source "$source" --run "$run" --resume ${TRAIN:-}
# shellcheck disable=SC2086
tdsm classify "$run" --maps.size "$side" "$side" ${PROBE:-} --probe.rows $rows
tdsm evaluate "$run"
tdsm analyse "$run"
for feature in additive tokens; do tdsm finetune "$run" --start "$feature-mlp_dropout" --epochs "${EPOCHS:-3}"; done
tdsm study worth "$run"
tdsm report "$run"
