#!/usr/bin/env bash
# Every method at its tuned rate beside Retrain and the controls, then the gap
# against the number of epochs.
#
#   benchmarks/anchor.sh SIZE OUT [FLAG...]
#
# SIZE is toy (digits; minutes), hard (10,000 CIFAR-10 images, nothing augmented;
# hours of two cores), cpu (25,000, augmented; a working day or so) or gpu (all
# 50,000, ResNet18 of width 64, 180 epochs; for a GPU). Flags go to every
# command, such as --data_dir=DIR, --dataset=npz:FILE or --engine=dask. What is done
# is never done again, so a run that was stopped goes on. The reports are
# OUT/table/report.html and OUT/curve/report.html.
set -euo pipefail
size=${1:?toy, hard, cpu or gpu} out=${2:?a folder for the results}
shift 2

# Where % stands, the number of epochs.
controls='finetune(epochs=%), scratch(epochs=%)'
curve="$controls, random_k(ratio=0.3, change='reinitialize', js_weight=0.0, \
epochs=%), ct(epochs=%), neggrad_plus(epochs=%), sfron(epochs=%)"
every="$curve, shrink_perturb(epochs=%), msg(epochs=%), l1_sparse(epochs=%), \
scrub(epochs=%), scrub(rewind=True, epochs=%), salun(epochs=%), \
amun(epochs=%), regun(epochs=%), bad_teacher(epochs=%), \
boundary_shrink(epochs=%), noisy_finetune(epochs=%), top_k(epochs=%), \
top_k(k=0.3, sensitivity='forget', change='reinitialize', reduction='mean', \
js_weight=0.0, epochs=%), ssd"

common=(--forget='random(0.1)' --schedule=cosine --stop_retain_share=2)
# A fifth of the test images is for the methods that need others than D's.
cifar=("${common[@]}" --dataset=cifar10 --heldout=0.2)
case $size in
  toy)
    common+=(--dataset=digits --width=8 --train_epochs=8)
    main=1 budgets='2 1' trials=2 tunings=1 seeds=2
    every=$curve
    ;;
  hard)
    common=("${cifar[@]}" --model=resnet9 --width=8 --train_subset=10000)
    common+=(--train_epochs=20)
    main=2 budgets='4 2 1' trials=6 tunings=1 seeds=3
    ;;
  cpu)
    common=("${cifar[@]}" --model=resnet9 --width=16 --train_subset=25000)
    common+=(--recipe=standard --train_epochs=16) # 81 % on test images.
    main=2 budgets='4 2 1' trials=6 tunings=1 seeds=3
    ;;
  gpu)
    common=("${cifar[@]}" --model=resnet18 --width=64 --dtype=bfloat16)
    common+=(--recipe=standard --train_epochs=180 --batch_size=512)
    common+=(--optimizer=sgd)
    main=10 budgets='20 10 4' trials=4 tunings=1 seeds=1
    ;;
  *)
    echo "error: SIZE=$size, allowed: toy, hard, cpu, gpu" >&2
    exit 2
    ;;
esac
common+=("$@")
[ "$size" = toy ] && references=1 || references=3 # Four Retrains a seed.

# Text of strategies at each of some numbers of epochs.
at() {
  local text=$1 all=''
  shift
  for epochs in "$@"; do all+="${all:+, }${text//%/$epochs}"; done
  echo "$all"
}

measure() { # a name, and its strategies
  local here=$out/$1 work=$out/work
  mkdir -p "$here"
  python -m experiments.tune "${common[@]}" --strategies="$2" \
    --trials="$trials" --seeds="$tunings" --workdir="$work"
  mv "$work/tuned.json" "$here"
  python -m experiments.unlearn "${common[@]}" --strategies="retrain, $2" \
    --seeds="$seeds" --references="$references" --workdir="$work" \
    --tuned="$here/tuned.json"
  cp -r "$work"/report.* "$work/figures" "$here"
}

measure table "$(at "$every" "$main")"
# shellcheck disable=SC2086
measure curve "$(at "$curve" $budgets)"
