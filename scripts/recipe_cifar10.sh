#!/usr/bin/env bash
# CIFAR-10 through every stage, once with all filters in 3 bits and once in 1 bit (docs/accuracy.md).
#
#   scripts/recipe_cifar10.sh DATA_DIR [WORK_DIR]
#
# DATA_DIR holds train/ and val/ with TFRecords (labels 1..10, 0 = background); WORK_DIR (runs/cifar10) receives
# checkpoints, converted files and one JSON of figures per evaluation. About 45 minutes on two cores. A finished step is
# not repeated when the recipe is started again. PYTHON names the interpreter. Paths on the command line are those of the
# folder that it is started in; the default WORK_DIR lies in the project.
set -euo pipefail
data=${1:?usage: recipe_cifar10.sh DATA_DIR [WORK_DIR]}
project=$(CDPATH="" cd "$(dirname "$0")/.." && pwd)
work=${2:-$project/runs/cifar10}
case $data in /*) ;; *) data=$PWD/$data ;; esac
case $work in /*) ;; *) work=$PWD/$work ;; esac
cd "$project"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
float_epochs=${FLOAT_EPOCHS:-6}
# Most of the quantized training happens where filters and activations are quantized and batch norm still helps. It begins
# at the rate that float training began with: what the float filters learned is kept where it survives being quantized.
weight_epochs=${WEIGHT_EPOCHS:-2} activation_epochs=${ACTIVATION_EPOCHS:-7} fused_epochs=${FUSED_EPOCHS:-1}
more_epochs=$((weight_epochs + activation_epochs + fused_epochs))
mkdir -p "$work"

# once MARKER COMMAND...: run a step and remember that it is done, and how many seconds it took
once() {
    local marker="$work/$1.seconds"
    shift
    [ -f "$marker" ] && return
    echo "+ $*"
    local begin=$SECONDS
    "$@"
    echo $((SECONDS - begin)) >"$marker"
}

train() { # NETS_DIR CHECKPOINT_DIR FLAGS...
    local nets=$1 checkpoints=$2
    shift 2
    "$python" train.py --net cifar --chip 2801 --nets_dir "$nets" --checkpoint_dir "$checkpoints" --classes 11 \
        --data_dir "$data" --train_batch_size 64 --val_batch_size 250 --schedule cosine --optimizer adam --steps_per_epoch 500 --seed 1 "$@"
}

evaluate() { # NETS_DIR CHECKPOINT REPORT FLAGS...
    local nets=$1 checkpoint=$2 report=$3
    shift 3
    "$python" eval.py --net cifar --chip 2801 --nets_dir "$nets" --checkpoint "$checkpoint" --data_dir "$data" \
        --val_batch_size 250 --json "$report" "$@"
}

for bits in 3 1; do
    mkdir -p "$work/nets$bits"
    sed "s/\"coef_bits\": [13]/\"coef_bits\": $bits/" nets/2801_cifar_dat.json >"$work/nets$bits/2801_cifar_dat.json"
    cp nets/2801_cifar_model.json "$work/nets$bits/"
done

once float train "$work/nets3" "$work/float" --num_epochs "$float_epochs" --learning_rate 0.001
# The yardstick: float training that goes on for as many epochs as the quantized stages have together.
once float_more train "$work/nets3" "$work/float_more" --num_epochs "$more_epochs" --learning_rate 0.001 \
    --resume_from "$work/float"
once eval_float evaluate "$work/nets3" "$work/float_more" "$work/float.json"

for bits in 3 1; do
    nets="$work/nets$bits" run="$work/bits$bits" caps="$work/caps$bits.json"
    once "qw$bits" train "$nets" "$run" --resume_from "$work/float" --quant_w \
        --num_epochs "$weight_epochs" --learning_rate 0.001
    once "caps$bits" "$python" set_relu_caps.py --net cifar --chip 2801 --nets_dir "$nets" --checkpoint "$run" \
        --quant_w --data_dir "$data" --train_batch_size 250 --num_batches 20 --settings_file "$caps"
    once "qa$bits" train "$nets" "$run" --resume_from "$run" --quant_w --quant_act --settings_file "$caps" \
        --num_epochs "$activation_epochs" --learning_rate 0.001
    once "fused$bits" train "$nets" "$run" --resume_from "$run" --quant_w --quant_act --fuse \
        --num_epochs "$fused_epochs" --learning_rate 0.00002
    once "eval_qw$bits" evaluate "$nets" "$run" "$work/quant_w$bits.json" --quant_w
    once "eval_qa$bits" evaluate "$nets" "$run" "$work/quant_act$bits.json" --quant_w --quant_act
    once "eval_fused$bits" evaluate "$nets" "$run" "$work/fused$bits.json" --quant_w --quant_act --fuse
    once "convert$bits" "$python" convert_to_chip.py --net cifar --chip 2801 --nets_dir "$nets" --checkpoint "$run" \
        --fuse --output_dir "$nets"
    once "chip$bits" "$python" chip_infer.py --net cifar --chip 2801 --nets_dir "$nets" --checkpoint "$run" \
        --model_file "$nets/2801_cifar.model" --data_dir "$data" --json "$work/chip$bits.json"
    # Every code of every sublayer, of all validation images: fused Keras model, emulator, stick.
    once "compare$bits" "$python" scripts/compare.py --net cifar --chip 2801 --nets_dir "$nets" --fused_checkpoint "$run" \
        --checkpoint_dir "$nets" --model_file "$nets/2801_cifar.model" --data_dir "$data" --val_batch_size 50 \
        --num_batches 1000000 --json "$work/compare$bits.json"
done
