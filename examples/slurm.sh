#!/bin/bash
# Runs a recipe on a SLURM cluster: a job array over `lcfbench plan`, then one job that gathers and reports.
#
#   bash slurm.sh --recipe recipe.yaml --out results            one array task a run
#   TASKS=16 bash slurm.sh --recipe recipe.yaml --out results   sixteen array tasks that share the runs
#   SHARDS=8 bash slurm.sh --recipe recipe.yaml --out results   eight array tasks, an eighth of each run's documents each
#
# Call it on the login node, in an environment that has lcfbench, with the flags of `lcfbench run`; --out lies
# on a file system that all nodes see. The same command again submits only what is not complete: after a kill,
# a lost node or `scancel` nothing that was recorded is done twice. Two minutes before its time limit a task
# ends in order and is queued again. GPUS=0 asks for no GPU. Other resources: the lines below, or sbatch's
# own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, …). Compute nodes without a network:
# fetch models and data where there is one (`lcfbench run … --limit 1`), then add --offline.
#
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

submit() {
    local name out all left most file count work array
    name="lcfbench-$(printf '%s\n' "$PWD" "$@" | cksum | cut -d ' ' -f 1)"
    if [[ -n $(squeue --me --noheader --name="$name") ]]; then
        echo "$name is in the queue already; wait for it, or: scancel --name=$name" >&2
        exit 2
    fi
    file=$(mktemp)
    lcfbench plan "$@" --json > "$file"
    out=$(query "$file" 'plan["out"]')
    all=$(query "$file" 'len(plan["runs"])')
    left=$(query "$file" 'sum(run["state"] != "complete" for run in plan["runs"])')
    if ((left == 0)); then
        echo "all $all runs are complete: lcfbench show $out"
        exit
    fi
    most=$(scontrol show config | awk '$1 == "MaxArraySize" { print $3 - 1 }')
    mkdir -p "$out/.slurm"
    if [[ -n ${SHARDS-} ]]; then
        count=$SHARDS
        seq -f "--shard %.0f/$SHARDS" "$SHARDS" > "$out/.slurm/$name"
    else # neighbours stay together: they ask the same documents, which the models then read once
        count=$((left < ${TASKS:-most} ? left : ${TASKS:-most}))
        query "$file" "'\n'.join('--only ' + ','.join(keys[i * len(keys) // $count : (i + 1) * len(keys) // $count])
            for i in range($count))" > "$out/.slurm/$name"
    fi
    rm "$file"
    ((count <= most)) || { echo "$count array tasks, and this cluster allows $most: set TASKS or SHARDS." >&2; exit 2; }
    work=(--parsable --job-name="$name" --output="$out/.slurm/%A_%a.log" --open-mode=append)
    ((${GPUS:-1} == 0)) || work+=(--gpus="${GPUS:-1}")
    array=$(sbatch "${work[@]}" --array="1-$count" "$0" :task "$out/.slurm/$name" "$@")
    sbatch --parsable --job-name="$name" --output="$out/.slurm/%j.log" --dependency="afterany:${array%%;*}" \
        --time=00:30:00 "$0" :gather "$out" "$@" > /dev/null
    echo "$left of $all runs in $count array tasks: squeue --name=$name; logs and report in $out"
}

query() { # a Python expression over a plan
    python3 -c "import json, sys
plan = json.load(open(sys.argv[1]))
keys = [run['key'] for run in plan['runs'] if run['state'] != 'complete']
print($2)" "$1"
}

task() { # one task of the array: its line of the file of pieces
    local code=0 piece
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over by itself
    read -ra piece < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
    srun lcfbench run "${@:2}" "${piece[@]}" --wait || code=$?
    if ((code == 143 && ${SLURM_RESTART_COUNT:-0} < 50)); then # SIGTERM: the time limit is near
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}

gather() { # after the array, however its tasks ended
    local out=$1 left
    shift
    [[ -z ${SHARDS-} ]] || lcfbench gather "$out" --out "$out" || true
    lcfbench plan "$@" --json > "$out/.slurm/plan.$SLURM_JOB_ID"
    left=$(query "$out/.slurm/plan.$SLURM_JOB_ID" 'len(keys)')
    lcfbench report "$out" -o "$out/report.html"
    if ((left)); then
        echo "$left runs are not complete; the same command submits what is left." >&2
        exit 1
    fi
}

case ${1-} in
-h | --help) sed -n '2,/^#SBATCH/p' "$0" ;;
:task) task "${@:2}" ;;
:gather) gather "${@:2}" ;;
*) # ids depend on the kind of device, so the plan is made for the one that the tasks have
    ((${GPUS:-1} == 0)) || [[ " $* " == *" --device"* ]] || set -- "$@" --device cuda
    submit "$@"
    ;;
esac
